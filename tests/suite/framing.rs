//! Where one HTTP/1 request ends and the next begins: what could be read in two ways is refused and
//! its connection closed; what is only unusual is served.

use bytes::Bytes;
use serde_json::json;
use tollgate_test_support::{Answer, FakeUpstream, Gate, H1Client, Request};

use crate::dialect::{Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup};

async fn start(dialect: Dialect) -> (Gateway, FakeUpstream) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    (gateway, upstream)
}

fn body(dialect: Dialect) -> String {
    dialect.ask(dialect.model(), false).to_string()
}

/// A request head with these lines after the usual ones; the lines bring their own ends.
fn head(dialect: Dialect, lines: &str) -> String {
    let path = dialect.path();
    format!(
        "POST {path} HTTP/1.1\r\nhost: tollgate.test\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\n{lines}\r\n"
    )
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// What must never be taken for a request of its own.
fn smuggled(dialect: Dialect) -> String {
    let body = body(dialect);
    format!(
        "{}{body}",
        head(dialect, &format!("content-length: {}\r\n", body.len()))
    )
}

in_each_dialect!(what_could_be_read_in_two_ways_is_refused_and_closed);
async fn what_could_be_read_in_two_ways_is_refused_and_closed(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    let body = body(dialect);
    let length = body.len();
    let cl = format!("content-length: {length}\r\n");
    let plain = |lines: String| format!("{}{body}", head(dialect, &lines));
    let chunks = |lines: &str| format!("{}{}", head(dialect, lines), chunked(&body));
    #[rustfmt::skip]
    let rows = [
        ("length, then chunked", chunks(&format!("{cl}transfer-encoding: chunked\r\n"))),
        ("chunked, then length", chunks(&format!("transfer-encoding: chunked\r\n{cl}"))),
        ("chunked, length 0", chunks("transfer-encoding: chunked\r\ncontent-length: 0\r\n")),
        ("the same length twice", plain(format!("{cl}{cl}"))),
        ("two lengths", plain(format!("{cl}content-length: 3\r\n"))),
        ("a list of one length", plain(format!("content-length: {length}, {length}\r\n"))),
        ("a list of lengths", plain(format!("content-length: {length}, 3\r\n"))),
        ("a signed length", plain(format!("content-length: +{length}\r\n"))),
        ("a negative length", plain("content-length: -1\r\n".to_owned())),
        ("a hexadecimal length", plain("content-length: 0x20\r\n".to_owned())),
        ("no length", plain("content-length: \r\n".to_owned())),
        ("an endless length", plain("content-length: 99999999999999999999\r\n".to_owned())),
        ("another encoding", chunks("transfer-encoding: gzip\r\n")),
        ("two encodings", chunks("transfer-encoding: gzip, chunked\r\n")),
        ("chunked is not last", chunks("transfer-encoding: chunked, identity\r\n")),
        ("chunked twice", chunks("transfer-encoding: chunked, chunked\r\n")),
        ("chunked in two fields", chunks("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n")),
        ("chunked almost", chunks("transfer-encoding: xchunked\r\n")),
        ("chunked behind a tab", chunks("transfer-encoding: \x0bchunked\r\n")),
        ("chunked in quotes", chunks("transfer-encoding: \"chunked\"\r\n")),
        ("a bare line feed", plain(format!("x-a: b\n{cl}"))),
        ("a bare line feed before the body", plain(cl.clone()).replacen("\r\n\r\n", "\r\n\n", 1)),
        ("only bare line feeds", plain(cl.clone()).replace("\r\n", "\n")),
        ("a folded field", plain(format!("x-a: b\r\n c\r\n{cl}"))),
        ("a folded encoding", chunks("transfer-encoding:\r\n chunked\r\n")),
        ("a space before the colon", plain(format!("content-length : {length}\r\n"))),
        ("a space before the colon of the encoding", chunks("transfer-encoding : chunked\r\n")),
        ("a line without a colon", plain(format!("content-length\r\n{cl}"))),
        ("a field without a name", plain(format!(": 5\r\n{cl}"))),
        ("a NUL", plain(format!("x-a: b\0c\r\n{cl}"))),
        ("a carriage return", plain(format!("x-a: b\rc\r\n{cl}"))),
        ("chunks of HTTP/1.0", chunks("transfer-encoding: chunked\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1)),
    ];
    for (what, request) in rows {
        let mut client = gateway.h1().await;
        let bytes = format!("{request}{}", smuggled(dialect));
        client.send(bytes.as_bytes()).await.unwrap();
        let reply = client.reply().await;
        let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(reply.status, 400, "{what}: {}", reply.text());
        assert_eq!(reply.header("connection"), Some("close"), "{what}");
        // What could not be parsed at all is refused without a word.
        if !reply.body.is_empty() {
            dialect.refusal(&reply.json());
        }
        assert_ends(what, &mut client).await;
    }
    assert_eq!(upstream.total(), 0, "{:?}", upstream.requests());
}

/// The connection is closed, or reset where bytes were left unread, without another answer.
async fn assert_ends(what: &str, client: &mut H1Client) {
    match client.head().await {
        Ok(next) => panic!("{what}: a second answer: {next:?}"),
        Err(end) => assert_ne!(end.kind(), std::io::ErrorKind::TimedOut, "{what}"),
    }
}

in_each_dialect!(pipelined_requests_are_answered_in_order);
async fn pipelined_requests_are_answered_in_order(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    let request = |model: &str| {
        let body = dialect.ask(model, false).to_string();
        let lines = format!("content-length: {}\r\n", body.len());
        format!("{}{body}", head(dialect, &lines)).into_bytes()
    };
    // All at once.
    let mut client = gateway.h1().await;
    let models = match dialect {
        Dialect::Responses => ["gpt-5", "gpt-5-mini", "gpt-5-nano"],
        Dialect::Messages => ["claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5"],
    };
    client.send(&models.map(request).concat()).await.unwrap();
    for model in models {
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["model"], json!(model));
    }
    // The second while the first is with the upstream; then one more as usual.
    let gate = Gate::new();
    upstream.push(Answer::echo().after(&gate));
    client.send(&request(models[0])).await.unwrap();
    gate.wait_reached(1).await;
    client.send(&request(models[1])).await.unwrap();
    gate.open();
    for model in &models[..2] {
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["model"], json!(model));
    }
    let last = dialect.post(body(dialect), KEY);
    assert_eq!(client.request(&last).await.unwrap().status, 200);
    assert_eq!(upstream.requests().len(), 6);
    let records = gateway.wait_records(6).await;
    assert!(records.iter().all(|r| r["outcome"] == json!("ok")));
}

in_each_dialect!(a_request_behind_a_refused_one);
/// A request refused after its body was read leaves the connection to the next one; refused before,
/// it takes the connection with it, and says so.
async fn a_request_behind_a_refused_one(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    let request = |key: &str, path: &str, model: &str| {
        let body = dialect.ask(model, false).to_string();
        let lines = format!("content-length: {}\r\n", body.len());
        let head = head(dialect, &lines)
            .replace(KEY, key)
            .replace(dialect.path(), path);
        format!("{head}{body}")
    };
    let (path, model) = (dialect.path(), dialect.model());
    let good = request(KEY, path, model);
    let rows = [
        (400, request(KEY, path, "")),
        (401, request("nobody", path, model)),
        (404, request(KEY, "/v1/nothing", model)),
    ];
    for (status, refused) in rows {
        let mut client = gateway.h1().await;
        let both = format!("{refused}{good}");
        client.send(both.as_bytes()).await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, status);
        match reply.header("connection") {
            Some("close") => assert_ends("refused", &mut client).await,
            _ => {
                assert_eq!(status, 400);
                let reply = client.reply().await.unwrap();
                assert_eq!(reply.status, 200, "behind {status}: {}", reply.text());
            }
        }
    }
    assert_eq!(upstream.requests().len(), 1);
}

in_each_dialect!(a_client_of_http_1_0_is_served);
async fn a_client_of_http_1_0_is_served(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    for (stream, expect) in [(false, false), (true, false), (false, true)] {
        let what = format!("stream {stream}, expect {expect}");
        let body = dialect.ask(dialect.model(), stream).to_string();
        let mut lines = format!("content-length: {}\r\n", body.len());
        if expect {
            // HTTP/1.0 knows no interim answers: this is not to be heeded.
            lines.push_str("expect: 100-continue\r\n");
        }
        let request =
            format!("{}{body}", head(dialect, &lines)).replacen("HTTP/1.1", "HTTP/1.0", 1);
        let mut client = gateway.h1().await;
        client.send(request.as_bytes()).await.unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 200, "{what}");
        assert_eq!(head.header("transfer-encoding"), None, "{what}: {head:?}");
        let reply = client.body().await.unwrap();
        let text = String::from_utf8_lossy(&reply);
        match stream {
            true => assert!(
                text.starts_with("event: ") && text.ends_with("\n\n"),
                "{what}: {text}"
            ),
            false => assert!(text.starts_with('{'), "{what}: {text}"),
        }
        assert_ends(&what, &mut client).await;
    }
    for request in upstream.requests() {
        assert_eq!(request.version, http::Version::HTTP_11);
    }
}

in_each_dialect!(heads_have_a_limit_that_no_honest_one_meets);
async fn heads_have_a_limit_that_no_honest_one_meets(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    let body = Bytes::from(body(dialect));
    let post = || dialect.post(body.clone(), KEY);
    let mut client = gateway.h1().await;
    let long = post().header("x-long", &"x".repeat(100 << 10));
    assert_eq!(client.request(&long).await.unwrap().status, 200);
    let many = (0..200).fold(post(), |r, n| r.header(&format!("x-{n}"), "y"));
    assert_eq!(client.request(&many).await.unwrap().status, 200);
    let forwarded = upstream.requests();
    assert!(forwarded.iter().all(|r| r.raw_head.len() < 1000));

    let too_many = (0..300).fold(post(), |r, n| r.header(&format!("x-{n}"), "y"));
    let too_long = post().header("x-long", &"x".repeat(2 << 20));
    for (what, request) in [("too many", too_many), ("too long", too_long)] {
        let mut client = gateway.h1().await;
        // Read no further than the limit: what is left unread may turn the close into a reset.
        match client.request(&request).await {
            Ok(reply) => assert_eq!(reply.status, 400, "{what}"),
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{what}"),
        }
    }
    assert_eq!(upstream.total(), 2);
}

in_each_dialect!(targets_in_absolute_form);
async fn targets_in_absolute_form(dialect: Dialect) {
    let (gateway, upstream) = start(dialect).await;
    let rows = [
        ("http://tollgate.test/HERE", 200),
        ("https://tollgate.test/HERE", 200),
        ("http://elsewhere.test/HERE", 400),
        ("http://user@tollgate.test/HERE", 400),
        ("http://tollgate.test", 404),
        ("http://tollgate.test/v1/nothing", 404),
        ("//tollgate.test/HERE", 404),
        ("*", 404),
    ];
    for (target, status) in rows {
        let target = target.replace("/HERE", dialect.path());
        let mut client = gateway.h1().await;
        let request = Request::post(&target, body(dialect)).bearer(KEY);
        let reply = client.request(&request).await;
        let reply = reply.unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(reply.status, status, "{target}: {}", reply.text());
    }
    let seen = upstream.requests();
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert_eq!(request.path(), dialect.path());
        assert_eq!(
            request.host(),
            Some(upstream.address().to_string().as_str())
        );
    }
}
