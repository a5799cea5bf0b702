//! `tollgate demo`: the whole job once through, on a throw-away data directory, with a simulated
//! provider in the same process.

mod provider;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::open::Failure;
use crate::app::{App, Origin, StopSignal};
use crate::config::resources::{
    AccountResource, ApiKeyResource, GroupResource, Resources, UserResource,
};
use crate::config::{self, Config, Listener};
use crate::domain::{
    AccountType, Credentials, ModelMapping, Money, Multiplier, Platform, Secret, SubscriptionType,
};
use crate::logging;
use crate::storage::{ApplyOptions, Store, UsageFilter, UsageRecordView};

/// What the demo's client asks for.
const MODEL: &str = "gpt-5-mini";
/// The demo's client key. No secret: it opens nothing but this demo.
const KEY: &str = "tg-demo-0123456789abcdef";
/// Where it listens if these are free, so that the printed lines look familiar.
const PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;
/// Longest wait for the server to answer, and for the record to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that is removed when the demo ends.
struct ThrowAway(PathBuf);

impl ThrowAway {
    /// A new directory for its owner only. One that is there already is somebody else's.
    fn new() -> std::io::Result<ThrowAway> {
        let moment = Utc::now().timestamp_nanos_opt().unwrap_or_default();
        let name = format!("tollgate-demo-{}-{moment:x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(ThrowAway(path))
    }
}

impl Drop for ThrowAway {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free_address(preferred: u16) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", preferred))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    listener.local_addr()
}

/// Runs the demo; `once`: ends after its one request.
pub fn run(once: bool) -> Result<(), Failure> {
    let directory = ThrowAway::new()?;
    let config = demo_config(&directory.0)?;
    logging::init(&config.logging);
    let address = config.server.listen[0].addr;
    let admin = config.admin.listen;
    let app = App::build(config, Origin::default())?;
    let provider = app.block_on(provider::start())?;
    println!("A simulated provider runs on http://{provider}; no model is called.");
    app.block_on(
        app.store()
            .apply(&resources(provider), ApplyOptions::default()),
    )?;
    app.reload()?;

    let stop = StopSignal::default();
    let stopper = stop.clone();
    let store = app.store().clone();
    // Its own thread and runtime: a client as separate from the server as one process allows.
    let client = std::thread::spawn(move || {
        let shown = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::from)
            .and_then(|runtime| runtime.block_on(show(&store, address, admin)));
        if once || shown.is_err() {
            stopper.stop();
        } else {
            println!("\nStill serving; end with Ctrl-C.");
        }
        shown
    });
    app.serve(stop)?;
    match client.join() {
        Ok(shown) => shown,
        Err(_) => Err(Failure::Message("the demo's client failed".into())),
    }
}

fn demo_config(directory: &Path) -> Result<Config, Failure> {
    let mut config = config::default_with(directory);
    let (listen, admin) = (free_address(PORT)?, free_address(ADMIN_PORT)?);
    config.server.listen = vec![Listener {
        addr: listen,
        tls: None,
    }];
    config.admin.listen = admin;
    // The demo tells its own story; the log is for when something goes wrong.
    config.logging.level = log::LevelFilter::Warn;
    Ok(config)
}

fn resources(provider: SocketAddr) -> Resources {
    let account = |number: u32| AccountResource {
        name: format!("demo-account-{number}"),
        enabled: true,
        platform: Platform::OpenAi,
        account_type: AccountType::ApiKey,
        credentials: Credentials {
            api_key: Secret::new("sk-demo"),
            base_url: Some(format!("http://{provider}")),
            other: BTreeMap::new(),
        },
        groups: vec!["demo".into()],
        concurrency: 10,
        priority: 50,
        model_mapping: ModelMapping::default(),
        rate_multiplier: Multiplier::ONE,
        load_factor: None,
        schedulable: true,
        expires_at: None,
        proxy: None,
        extra: serde_json::Map::new(),
    };
    Resources {
        groups: vec![GroupResource {
            name: "demo".into(),
            enabled: true,
            platform: Platform::OpenAi,
            rate_multiplier: None,
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: serde_json::Map::new(),
        }],
        accounts: vec![account(1), account(2)],
        users: vec![UserResource {
            name: "alice".into(),
            enabled: true,
            balance: Some(Money::from_usd(10)),
            concurrency: 5,
            rpm_limit: 0,
            group_multipliers: BTreeMap::new(),
        }],
        api_keys: vec![ApiKeyResource {
            name: "alice-laptop".into(),
            enabled: true,
            key: Some(Secret::new(KEY)),
            user: "alice".into(),
            group: Some("demo".into()),
            quota: None,
            rate_limits: [None; 3],
            expires_at: None,
            ip_allow: Vec::new(),
            ip_deny: Vec::new(),
        }],
        ..Resources::default()
    }
}

/// Sends the request, prints the answer as it comes and the record it left.
async fn show(store: &Store, address: SocketAddr, admin: SocketAddr) -> Result<(), Failure> {
    let stream = connect(address).await?;
    println!("Tollgate listens on http://{address}, metrics on http://{admin}/metrics.\n");
    println!("> POST /v1/responses  model {MODEL}, streamed");
    let text = ask(stream).await?;
    if text.is_empty() {
        return Err(Failure::Message("the answer was empty".into()));
    }
    let record = record(store).await?;
    println!("\nIts usage record:");
    println!("{}", serde_json::to_string_pretty(&record)?);
    let body = |stream: bool| json!({"model": MODEL, "input": "Hello!", "stream": stream});
    println!("\nTry it yourself:");
    for stream in [false, true] {
        let unbuffered = if stream { "-N " } else { "" };
        println!(
            "  curl {unbuffered}http://{address}/v1/responses -H 'Authorization: Bearer {KEY}' \
             -H 'Content-Type: application/json' -d '{}'",
            body(stream)
        );
    }
    println!("  curl http://{address}/v1/models -H 'Authorization: Bearer {KEY}'");
    println!("  curl http://{admin}/metrics");
    Ok(())
}

/// The server may need a moment to listen.
async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Asks for a stream and prints its text as it comes.
async fn ask(mut stream: TcpStream) -> Result<String, Failure> {
    let body = json!({"model": MODEL, "input": "Say hello.", "stream": true}).to_string();
    let request = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: tollgate\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next_line().await?.unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(Failure::Message(format!("the server answered {status:?}")));
    }
    let mut text = String::new();
    print!("< ");
    while let Some(line) = lines.next_line().await? {
        // Frames are written one a chunk, so that a frame's data is one line here.
        let Some(data) = line.strip_prefix("data:") else {
            continue;
        };
        let event: Value = serde_json::from_str(data.trim())?;
        if let Some(delta) = event["delta"].as_str() {
            text.push_str(delta);
            print!("{delta}");
            std::io::stdout().flush()?;
        }
    }
    println!();
    Ok(text)
}

async fn record(store: &Store) -> Result<UsageRecordView, Failure> {
    let filter = UsageFilter::since(Utc::now() - chrono::TimeDelta::minutes(5));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut page = store.usage_records(&filter, None, 1).await?;
        if let Some(record) = page.pop() {
            return Ok(record);
        }
        if Instant::now() >= deadline {
            return Err(Failure::Message("no usage record appeared".into()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
