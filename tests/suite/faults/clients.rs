//! The clients: each sends one request after the other, and remembers what became of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tollgate_test_support::{H1Client, H2Client, Request, sse};

use super::{GROUPS, Scene, USERS, key};
use crate::call::{Call, Head};
use crate::chance::Chance;
use crate::dialect::Dialect;

/// How long a client goes on knocking at a closed door.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a request was, and what became of it as its client saw it.
pub(super) struct Told {
    pub(super) id: String,
    pub(super) user: usize,
    pub(super) group: usize,
    pub(super) is_stream: bool,
    pub(super) body_bytes: u64,
    pub(super) end: End,
    /// Some of the answer's text was read.
    pub(super) shown: bool,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A good answer, read to its end; our id of it.
    Whole(String),
    /// A status that is not 200, with a whole body: status, and what it says.
    Refused(u16, String),
    /// An answer with status 200, read to its end, that says it has failed.
    Failed(String),
    /// The connection broke.
    Broken,
    /// The client left.
    Left,
}

/// What a client does next.
struct Plan {
    told: Told,
    request: Request,
    way: Way,
    /// So many pieces of the answer are read before the client leaves.
    leaves_after: Option<u64>,
    /// Leaves with a reset rather than by closing.
    resets: bool,
}

#[derive(Clone, Copy)]
enum Way {
    /// On the connection of the last request, where it is still there.
    Kept,
    H1,
    H2,
}

impl Plan {
    fn of(scene: &Scene, client: usize, turn: u64) -> Plan {
        let mut chance = Chance::of((scene.scale.seed, "client", client, turn));
        let id = format!("c{client}-{turn}");
        let is_stream = chance.below(2) == 0;
        let (user, group) = (
            chance.below(USERS as u64),
            chance.below(scene.groups as u64),
        );
        let (user, group) = (user as usize, group as usize);
        let (name, _, dialect) = GROUPS[group];
        let text = "x".repeat(1 + chance.below(200) as usize);
        let mut body = dialect.saying(&text, dialect.model(), is_stream);
        let most = match dialect {
            Dialect::Responses => "max_output_tokens",
            Dialect::Messages => "max_tokens",
        };
        body[most] = json!(4096);
        let body = body.to_string();
        // Half of the requests are streams: a fifth of all leaves.
        let leaves = is_stream && chance.below(10) < 4;
        Plan {
            request: dialect
                .post(body.clone(), &key(user, name))
                // Passed on to the provider.
                .header("user-agent", &id)
                .header("x-request-id", &id),
            told: Told {
                id,
                user,
                group,
                is_stream,
                body_bytes: body.len() as u64,
                end: End::Broken,
                shown: false,
            },
            way: chance.pick(&[Way::Kept, Way::Kept, Way::H1, Way::H2]),
            leaves_after: leaves.then(|| chance.below(20)),
            resets: chance.below(2) == 0,
        }
    }
}

/// One client, until it is over.
pub(super) async fn client(scene: Arc<Scene>, number: usize) {
    let mut kept = None;
    let scale = scene.scale;
    let pause_ms = 2_000 * scale.clients as u64 / scale.per_second.max(1);
    for turn in 0.. {
        if scene.over.load(Ordering::Relaxed) {
            return;
        }
        let pause = Chance::of((scale.seed, "pause", number, turn)).ms(0, pause_ms.max(1));
        tokio::time::sleep(pause).await;
        let plan = Plan::of(&scene, number, turn);
        let told = run(&scene, plan, &mut kept).await;
        match &told.end {
            End::Refused(..) => &scene.refused,
            _ => &scene.ended,
        }
        .fetch_add(1, Ordering::Relaxed);
        scene.told.lock().push(told);
    }
}

async fn run(scene: &Scene, plan: Plan, kept: &mut Option<Box<H1Client>>) -> Told {
    let mut told = plan.told;
    let call = match (plan.way, kept.take()) {
        (Way::Kept, Some(client)) => send_h1(client, &plan.request).await,
        (Way::Kept | Way::H1, _) => {
            let client = knock(scene, H1Client::connect).await;
            send_h1(Box::new(client), &plan.request).await
        }
        (Way::H2, _) => {
            let mut client = knock(scene, H2Client::connect).await;
            let sent = client.send_request(&plan.request).await;
            sent.map(|stream| Call::H2(Box::new((client, stream))))
        }
    };
    let Ok(mut call) = call else { return told };
    let closes = |head: &Option<Head>| head.as_ref().is_none_or(|head| head.closes);
    let read = read(&mut call, plan.leaves_after.unwrap_or(u64::MAX)).await;
    told.shown = read.text.contains("some words");
    told.end = match read.end {
        Ok(true) => judge(GROUPS[told.group].2, &read.head, &read.text, told.is_stream),
        Ok(false) => End::Left,
        Err(_) => End::Broken,
    };
    match (call, &told.end) {
        (Call::H1(client), End::Left) if plan.resets => client.reset(),
        (Call::H2(mut call), End::Left) if plan.resets => {
            call.1.reset();
            // The reset is on its way before this: the connection sends in order.
            let _ = call.0.start(&Request::get("/nothing")).await;
        }
        (Call::H1(client), End::Whole(_) | End::Failed(_)) if !closes(&read.head) => {
            *kept = Some(client);
        }
        // Dropped, and so closed.
        _ => {}
    }
    told
}

async fn send_h1(mut client: Box<H1Client>, request: &Request) -> io::Result<Call> {
    // A connection whose server was killed meanwhile breaks here, or when the answer is read.
    client.send_request(request).await?;
    Ok(Call::H1(client))
}

/// Connects, as soon as somebody listens: nothing of a request has been sent before.
async fn knock<C, F>(scene: &Scene, connect: impl Fn(SocketAddr) -> F) -> C
where
    F: Future<Output = io::Result<C>>,
{
    let began = Instant::now();
    loop {
        let address = *scene.address.lock();
        match connect(address).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < PATIENCE, "nobody listens: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Read {
    head: Option<Head>,
    text: String,
    /// Whether it was the whole answer.
    end: io::Result<bool>,
}

/// Reads the answer, at most so many pieces of it.
async fn read(call: &mut Call, pieces: u64) -> Read {
    let mut body = BytesMut::new();
    let text = |body: &BytesMut| String::from_utf8_lossy(body).into_owned();
    let head = match call.head().await {
        Ok(head) => head,
        Err(error) => {
            return Read {
                head: None,
                text: String::new(),
                end: Err(error),
            };
        }
    };
    let mut end = Ok(false);
    for _ in 0..pieces {
        match call.chunk().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => {
                end = Ok(true);
                break;
            }
            Err(error) => {
                end = Err(error);
                break;
            }
        }
    }
    Read {
        head: Some(head),
        text: text(&body),
        end,
    }
}

fn judge(dialect: Dialect, head: &Option<Head>, text: &str, is_stream: bool) -> End {
    let head = head.as_ref().expect("a whole answer has a head");
    let says = |value: &Value| {
        let error = &value["error"];
        format!("{} {}: {}", error["type"], error["code"], error["message"])
    };
    if head.status != 200 {
        let value = serde_json::from_str(text).unwrap_or_default();
        return End::Refused(head.status, says(&value));
    }
    let last = match sse::events(text.as_bytes()).last() {
        Some(event) if is_stream => event.json(),
        _ => serde_json::from_str(text).unwrap_or_default(),
    };
    match dialect.is_good(&last) {
        true => End::Whole(head.request_id.clone()),
        false => End::Failed(says(&last)),
    }
}
