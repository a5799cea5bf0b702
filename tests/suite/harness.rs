//! Starts a real `tollgate` for a test and, when the test is over, asserts that nothing is left
//! over: no request, no slot, no body, no money held, no unwritten record, nothing open in the journal, no
//! balance that is not the sum of its ledger entries, no record that was not charged once; and that
//! SIGTERM ends it with exit code 0.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::domain::Secret;
use tollgate::storage::Store;
use tollgate_test_support::{FakeUpstream, H1Client};

/// Longest wait for anything; reached only when a test fails.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The client key of the standard set-up.
pub const KEY: &str = "tg-test-0123456789abcdef";
/// The installation's secret in every test.
const SECRET: &str = "the secret of these tests";
/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate");

/// What a test starts with. Change what it is about, then [`Setup::start`].
pub struct Setup {
    /// Resources as `tollgate apply` takes them (JSON is YAML).
    pub resources: Value,
    /// Configuration as environment variables, without the prefix `TOLLGATE_`.
    pub config: BTreeMap<String, String>,
    /// Further environment variables.
    pub env: BTreeMap<String, String>,
    /// Data directory to go on with, instead of a new one.
    pub directory: Option<TempDir>,
    /// Text of a configuration file (`tollgate.yaml` beside the data directory), for what changes
    /// while the server runs.
    pub file: Option<String>,
}

impl Setup {
    /// A group `main`, one account `a1`, `a2`, … for each base URL (credential `sk-a1`, …), a user
    /// `alice` with 10 USD and room for 50 requests, and [`KEY`]. Short intervals throughout.
    pub fn new(base_urls: &[String]) -> Setup {
        let accounts: Vec<Value> = base_urls
            .iter()
            .enumerate()
            .map(|(index, base_url)| {
                let name = format!("a{}", index + 1);
                json!({
                    "name": name,
                    "platform": "openai",
                    "type": "api_key",
                    "credentials": { "api_key": format!("sk-{name}"), "base_url": base_url },
                    "groups": ["main"],
                    "concurrency": 50,
                    // In order: a test knows which account is asked first.
                    "priority": index + 1,
                })
            })
            .collect();
        Setup {
            resources: json!({
                "groups": [{ "name": "main", "platform": "openai" }],
                "accounts": accounts,
                "users": [{ "name": "alice", "balance": "10.00", "concurrency": 50 }],
                "api_keys": [{ "name": "alice-key", "key": KEY, "user": "alice", "group": "main" }],
            }),
            config: BTreeMap::from([
                ("LOGGING__LEVEL".to_owned(), "info".to_owned()),
                ("SERVER__THREADS".to_owned(), "2".to_owned()),
                ("SECURITY__SECRET".to_owned(), SECRET.to_owned()),
                ("GATEWAY__DRAIN_TIMEOUT_MS".to_owned(), "10000".to_owned()),
            ]),
            env: BTreeMap::new(),
            directory: None,
            file: None,
        }
    }

    /// Another group, with a key of alice's (see [`key_of`]) and accounts: name, base URL. Their
    /// credentials are `sk-NAME`, and the first is asked first.
    pub fn group(mut self, name: &str, accounts: &[(&str, &str)]) -> Setup {
        let push = |resources: &mut Value, kind: &str, value: Value| {
            resources[kind].as_array_mut().unwrap().push(value);
        };
        let resources = &mut self.resources;
        push(
            resources,
            "groups",
            json!({ "name": name, "platform": "openai" }),
        );
        push(
            resources,
            "api_keys",
            json!({ "name": format!("key-{name}"), "key": key_of(name), "user": "alice", "group": name }),
        );
        for (index, (account, base_url)) in accounts.iter().enumerate() {
            push(
                resources,
                "accounts",
                json!({
                    "name": account,
                    "platform": "openai",
                    "type": "api_key",
                    "credentials": { "api_key": format!("sk-{account}"), "base_url": base_url },
                    "groups": [name],
                    "concurrency": 50,
                    "priority": index + 1,
                }),
            );
        }
        self
    }

    /// One account for each fake provider.
    pub fn with(upstreams: &[&FakeUpstream]) -> Setup {
        let urls: Vec<String> = upstreams.iter().map(|u| u.url()).collect();
        Setup::new(&urls)
    }

    /// Sets a configuration key, e.g. `set("GATEWAY__STALL_TIMEOUT_MS", 300)`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Setup {
        self.config.insert(key.to_owned(), value.to_string());
        self
    }

    /// Changes the resources.
    pub fn resources(mut self, change: impl FnOnce(&mut Value)) -> Setup {
        change(&mut self.resources);
        self
    }

    /// Sets an environment variable of the process.
    pub fn env(mut self, name: &str, value: impl ToString) -> Setup {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    /// Applies the resources and starts the server; returns when it is ready.
    pub async fn start(self) -> Gateway {
        // Blocking on purpose: tests run on a runtime with several threads, and nothing else of
        // this test happens before the server is ready.
        let directory = self.directory.unwrap_or_else(|| TempDir::new().unwrap());
        let mut env: BTreeMap<String, String> = self
            .config
            .iter()
            .map(|(key, value)| (format!("TOLLGATE_{key}"), value.clone()))
            .collect();
        env.extend(self.env);
        let data = directory.path().join("data");
        env.insert("TOLLGATE_DATA_DIR".into(), data.display().to_string());
        let file = self.file.map(|text| {
            let path = directory.path().join("tollgate.yaml");
            std::fs::write(&path, text).unwrap();
            path
        });
        let mut gateway = Gateway {
            address: free_address(),
            admin: free_address(),
            file,
            log: directory.path().join("log"),
            directory: Some(directory),
            env,
            child: None,
            checked: false,
        };
        if !self.resources.is_null() {
            gateway.apply(&self.resources);
        }
        gateway.launch();
        gateway
    }
}

/// An address on this machine that is free, and given out once in this process. Below the range
/// from which the system takes ports for outgoing connections and for port 0: between this and the
/// server's own bind, one of those would sometimes have it, and tests would talk to each other's
/// servers.
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 20_000;
    static TURN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at the same time begin at different places.
    let start = std::process::id().wrapping_mul(641) % COUNT;
    loop {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let offset = (start + turn) % COUNT;
        let address = SocketAddr::from(([127, 0, 0, 1], FIRST + offset as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
        assert!(turn < COUNT, "no free port");
    }
}

/// A running server.
pub struct Gateway {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
    file: Option<PathBuf>,
    log: PathBuf,
    directory: Option<TempDir>,
    env: BTreeMap<String, String>,
    child: Option<Child>,
    /// The end has been checked, or is not to be.
    checked: bool,
}

impl Gateway {
    /// The program with this server's configuration, and no command yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_clear().envs(&self.env);
        if let Some(file) = &self.file {
            command.arg("--config").arg(file);
        }
        // What the dynamic linker and resolver of the machine need.
        for name in ["PATH", "HOME", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Starts the server and waits until it is ready. A port that somebody else took in between is
    /// replaced; listeners given by the test itself stay.
    pub fn launch(&mut self) {
        if let Err(why) = self.try_launch() {
            panic!("{why}");
        }
    }

    /// As [`Gateway::launch`], for a server that may not be able to start; why it did not.
    pub fn try_launch(&mut self) -> Result<(), String> {
        for _ in 0..5 {
            let listen = self.env.get("TOLLGATE_SERVER__LISTEN").cloned();
            let mut command = self.command();
            if listen.is_none() {
                let listen = json!([self.address.to_string()]).to_string();
                command.env("TOLLGATE_SERVER__LISTEN", listen);
            }
            command.env("TOLLGATE_ADMIN__LISTEN", self.admin.to_string());
            let log = File::options()
                .create(true)
                .append(true)
                .open(&self.log)
                .unwrap();
            let mut child = command
                .arg("serve")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let deadline = Instant::now() + LIMIT;
            loop {
                let ended = child.try_wait().unwrap();
                if ended.is_none() && matches!(self.get("/readyz"), Some((200, _))) {
                    self.child = Some(child);
                    return Ok(());
                }
                if let Some(status) = ended {
                    if self.logged().contains("cannot listen") && listen.is_none() {
                        self.address = free_address();
                        self.admin = free_address();
                        break;
                    }
                    return Err(format!(
                        "the server ended with {status}:\n{}",
                        self.logged()
                    ));
                }
                if Instant::now() >= deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("not ready:\n{}", self.logged()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Err(format!("no free port:\n{}", self.logged()))
    }

    /// Runs a command of the program on this server's data; its exit code must be 0.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments, "");
        assert!(
            output.status.success(),
            "tollgate {arguments:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command with this standard input, whatever becomes of it.
    pub fn try_run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads no input may have ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// `tollgate apply` with these resources; the report.
    pub fn apply(&self, resources: &Value) -> Value {
        let output = self.try_run(&["apply", "--json", "-f", "-"], &resources.to_string());
        assert!(
            output.status.success(),
            "apply: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command prints as JSON.
    pub fn run_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// A new HTTP/1.1 connection.
    pub async fn h1(&self) -> H1Client {
        H1Client::connect(self.address).await.unwrap()
    }

    /// The usage records, as the program prints them.
    pub fn records(&self) -> Vec<Value> {
        self.run(&["usage", "records", "--json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until there are exactly `count` records.
    pub async fn wait_records(&self, count: usize) -> Vec<Value> {
        let mut last = Vec::new();
        self.wait(&format!("{count} records"), || {
            last = self.records();
            last.len() >= count
        })
        .await;
        assert_eq!(last.len(), count, "{last:#?}");
        last
    }

    /// The one record there is.
    pub async fn only_record(&self) -> Value {
        self.wait_records(1).await.remove(0)
    }

    /// A user's balance, as the program prints it.
    pub fn balance(&self, user: &str) -> String {
        let shown = self.run_json(&["users", "show", user, "--json"]);
        shown["balance"].as_str().unwrap().to_owned()
    }

    /// Waits for a condition.
    pub async fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}:\n{}",
                self.logged()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The value of a metric, written as in the exposition (`name{label="x"}` without the prefix
    /// `tollgate_`); 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics").expect("metrics answer");
        assert_eq!(status, 200);
        metric_in(&text, name)
    }

    /// Waits until a metric has a value.
    pub async fn wait_metric(&self, name: &str, value: f64) {
        self.wait(&format!("{name} = {value}"), || self.metric(name) == value)
            .await;
    }

    /// Changes something in the store and waits until the server has followed.
    pub async fn followed<T>(&self, change: impl FnOnce() -> T) -> T {
        let before = self.metric("directory_reloads_total");
        let result = change();
        self.wait("the server to follow", || {
            self.metric("directory_reloads_total") > before
        })
        .await;
        result
    }

    /// GET on the admin listener: status and body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.admin, path)
    }

    /// What the server has logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends the process a signal, by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        let child = self.child.as_mut().expect("it runs");
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                panic!("the server does not end:\n{}", self.logged());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.child = None;
        status
    }

    /// SIGTERM; the exit code must be 0.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let status = self.wait_exit();
        assert!(status.success(), "{status}:\n{}", self.logged());
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.wait_exit();
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.as_ref().unwrap().path().join("data")
    }

    /// A file beside the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }

    /// Asserts that nothing is left over and ends the server. `Drop` does it too; a test calls it
    /// when it goes on afterwards.
    pub fn finish(&mut self) {
        if std::mem::replace(&mut self.checked, true) {
            return;
        }
        if self.child.is_some() {
            self.assert_idle();
            self.stop();
        }
        assert_ledger(&self.data());
        let log = self.logged();
        assert!(!log.contains("panicked"), "a panic:\n{log}");
        for secret in ["sk-a1", SECRET] {
            assert!(!log.contains(secret), "a secret in the log:\n{log}");
        }
        if let Some(keys) = self.env.get("TOLLGATE_TEST_KEYS") {
            assert!(!log.contains(keys.as_str()));
        }
        assert!(!log.contains(KEY), "a client key in the log:\n{log}");
    }

    fn assert_idle(&self) {
        let deadline = Instant::now() + LIMIT;
        let gauges = [
            "requests_in_flight",
            "slots_held{slot=\"user\"}",
            "slots_held{slot=\"account\"}",
            "slots_held{slot=\"turn\"}",
            "inflight_body_bytes",
            "reservations_open",
            "writer_queue_records",
            "journal_open_requests",
        ];
        loop {
            let (_, text) = self.get("/metrics").expect("metrics answer");
            for name in gauges {
                // One that is not there would always be zero.
                assert!(text.contains(&format!("tollgate_{name} ")), "no {name}");
            }
            let left: Vec<_> = gauges
                .iter()
                .map(|name| (name, metric_in(&text, name)))
                .filter(|(_, value)| *value != 0.0)
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left over: {left:?}\n{}",
                self.logged()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the server's log\n{}", self.logged());
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            return;
        }
        self.finish();
    }
}

fn assert_ledger(data: &Path) {
    let data = data.to_path_buf();
    // Its own thread: a runtime cannot be started inside another.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = Store::open(&data, &Secret::new(SECRET)).await.unwrap();
            let wrong = store.verify_ledger().await.unwrap();
            assert!(wrong.is_empty(), "sums that do not agree: {wrong:?}");
            store.close().await.unwrap();
        });
    })
    .join()
    .expect("the ledger verifies");
}

fn metric_in(text: &str, name: &str) -> f64 {
    let name = format!("tollgate_{name}");
    text.lines()
        .find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '))
        .map_or(0.0, |value| value.trim().parse().unwrap())
}

/// GET over a connection of its own: status and body; `None` when nobody answers.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The client key of a group made by [`Setup::group`].
pub fn key_of(group: &str) -> String {
    format!("tg-{group}-0123456789abcdef")
}

/// A Responses request. All with the same model are one conversation, by their content.
pub fn ask(model: &str, stream: bool) -> Value {
    json!({ "model": model, "input": "hi", "stream": stream })
}

/// A Responses request that begins a conversation of its own: no account is its home.
pub fn ask_anew(model: &str, stream: bool) -> Value {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let input = format!("hi {}", COUNT.fetch_add(1, Ordering::Relaxed));
    json!({ "model": model, "input": input, "stream": stream })
}
