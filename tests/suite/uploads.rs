//! A request's body on its way in: announced, compressed, too long, empty, broken off, one of too
//! many.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use tollgate_test_support::{Answer, FakeUpstream, Gate, H1Client, H2Client, Request};

use crate::cells::{self, Kind, Side, World, assert_same, body, with_model};
use crate::dialect::{DIALECTS, Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

async fn start(dialect: Dialect, max_body_bytes: usize) -> (Gateway, FakeUpstream) {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .set("SERVER__MAX_BODY_BYTES", max_body_bytes)
        .start()
        .await;
    (gateway, upstream)
}

fn post(dialect: Dialect, body: &Bytes) -> Request {
    dialect.post(body.clone(), KEY)
}

fn message(dialect: Dialect, reply: &tollgate_test_support::ClientReply) -> String {
    let json = reply.json();
    let (kind, message) = dialect.refusal(&json);
    let expected = dialect.kind(reply.status, "invalid_request_error");
    assert_eq!(kind, expected, "{json}");
    message.to_owned()
}

/// Sends over a new connection of each kind and protocol: with a length and without.
async fn each_way(gateway: &Gateway, request: &Request) -> Vec<tollgate_test_support::ClientReply> {
    let mut replies = Vec::new();
    for request in [request.clone(), request.clone().chunked(5000)] {
        let mut h1 = gateway.h1().await;
        replies.push(h1.request(&request).await.expect("an answer over HTTP/1.1"));
        let mut h2 = H2Client::connect(gateway.address).await.unwrap();
        replies.push(h2.request(&request).await.expect("an answer over HTTP/2"));
    }
    replies
}

// ---- Expect: 100-continue

in_each_dialect!(who_asks_before_sending_is_told_to_go_on);
async fn who_asks_before_sending_is_told_to_go_on(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, 64 * MIB).await;
    let mut client = gateway.h1().await;
    let bodies = [body(dialect, KIB, true), body(dialect, 2 * MIB, false)];
    for (sent, expect) in bodies.iter().zip(["100-continue", "100-Continue"]) {
        for request in [post(dialect, sent), post(dialect, sent).chunked(70_000)] {
            let request = request.header("expect", expect);
            client.send(&request.head_bytes()).await.unwrap();
            assert_eq!(client.head().await.unwrap().status, 100);
            client.send(&request.body_bytes()).await.unwrap();
            let reply = client.reply().await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            let received = upstream.only_request();
            assert_eq!(received.header("expect"), None);
            assert_same("expected", &received.body, sent);
            upstream.wait_idle().await;
            upstream.forget();
        }
    }
    // Who does not wait for the 100 may send at once.
    let request = post(dialect, &bodies[0]).header("expect", "100-continue");
    let reply = client.request(&request).await.unwrap();
    assert_eq!(reply.status, 200);
    // HTTP/2 needs no interim answer to hold a body back.
    let mut h2 = H2Client::connect(gateway.address).await.unwrap();
    let reply = h2.request(&request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
}

in_each_dialect!(who_is_refused_is_not_told_to_go_on);
async fn who_is_refused_is_not_told_to_go_on(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let sent = body(dialect, KIB, true);
    let expecting = |request: Request| request.header("expect", "100-continue");
    let rows = [
        (401, expecting(dialect.post(sent.clone(), "nobody"))),
        (
            404,
            expecting(Request::post("/v1/nothing", sent.clone())).bearer(KEY),
        ),
        (
            405,
            expecting(Request::post("/v1/models", sent.clone())).bearer(KEY),
        ),
        (413, expecting(post(dialect, &body(dialect, MIB + 1, true)))),
    ];
    for (status, request) in rows {
        let mut client = gateway.h1().await;
        client.send(&request.head_bytes()).await.unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(head.status, status);
        // Whether the body still comes cannot be known: what follows would be ambiguous.
        assert_eq!(head.header("connection"), Some("close"), "{status}");
        client.body().await.unwrap();
        assert!(client.closed_by_peer().await.unwrap(), "{status}");
    }
    assert_eq!(upstream.total(), 0);
}

in_each_dialect!(who_was_told_to_go_on_can_still_read_the_refusal);
/// Told to go on, and too long all the same: the client is still sending when it is refused.
async fn who_was_told_to_go_on_can_still_read_the_refusal(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let request = post(dialect, &body(dialect, 8 * MIB, true))
        .chunked(64 * KIB)
        .header("expect", "100-continue");
    let mut client = gateway.h1().await;
    client.send(&request.head_bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 100);
    // The server may close before it has read everything.
    let _ = client.send(&request.body_bytes()).await;
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.status, 413);
    assert_eq!(
        message(dialect, &reply),
        "Request body too large, limit is 1MB"
    );
    assert_eq!(upstream.total(), 0);
}

// ---- compression

type Encode = fn(&[u8]) -> Vec<u8>;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).unwrap()
}

fn identity(plain: &[u8]) -> Vec<u8> {
    plain.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_bodies_are_forwarded_plain() {
    #[rustfmt::skip]
    let codings: [(&str, Encode); 10] = [
        ("gzip", gzip),
        ("x-gzip", gzip),
        ("GZip", gzip),
        ("deflate", zlib),
        ("deflate", deflate),
        ("zstd", zstd),
        ("identity", identity),
        ("gzip, zstd", |plain| zstd(&gzip(plain))),
        ("zstd,deflate", |plain| zlib(&zstd(plain))),
        ("identity, gzip", gzip),
    ];
    let mut cells_of = Vec::new();
    let world = World::start(Side::Http1, |resources, url| {
        for dialect in DIALECTS {
            let name = dialect.platform();
            cells_of.push(cells::add(dialect, resources, name, url, 2, true));
        }
    })
    .await;
    for kind in Kind::CLEAR {
        let mut client = world.client(kind).await;
        for (number, (coding, encode)) in codings.iter().enumerate() {
            // On one connection, now this dialect, now that; each has every coding with some kind of client.
            let cell = &cells_of[(number + kind as usize) % 2];
            let what = format!("{:?} {kind:?} {coding}", cell.dialect);
            let plain = body(cell.dialect, 200 * KIB + number, number % 3 == 0);
            let request = cell.dialect.post(encode(&plain), &cell.key);
            let request = request.header("content-encoding", coding);
            let reply = client.send(request).await.unwrap();
            assert_eq!(reply.status, 200, "{what}: {}", reply.text());
            let received = world.upstream.only_request();
            assert_eq!(received.header("content-encoding"), None, "{what}");
            let expected = with_model(cell, 0, &plain);
            let length = expected.len().to_string();
            assert_eq!(received.headers("content-length"), [&length], "{what}");
            assert_same(&what, &received.body, &expected);
            world.upstream.wait_idle().await;
            world.upstream.forget();
        }
        // One coding a header is a list as well.
        for cell in &cells_of {
            let plain = body(cell.dialect, 3000, true);
            let request = cell.dialect.post(zstd(&gzip(&plain)), &cell.key);
            let request = request
                .header("content-encoding", "gzip")
                .header("content-encoding", "zstd");
            let reply = client.send(request).await.unwrap();
            assert_eq!(reply.status, 200, "{kind:?}: {}", reply.text());
            world.upstream.wait_idle().await;
            world.upstream.forget();
        }
    }
}

in_each_dialect!(bodies_that_cannot_be_decoded_are_refused);
async fn bodies_that_cannot_be_decoded_are_refused(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let plain = body(dialect, 20 * KIB, true);
    let coded = gzip(&plain);
    let mut wrong_sum = coded.clone();
    let at = wrong_sum.len() - 6;
    wrong_sum[at] ^= 1;
    let trailing = [coded.as_slice(), b"more"].concat();
    let rows: [(&str, &str, Vec<u8>); 9] = [
        ("unknown", "br", coded.clone()),
        ("unknown in a list", "gzip, br", coded.clone()),
        ("not coded", "gzip", plain.to_vec()),
        ("coded otherwise", "zstd", coded.clone()),
        ("cut", "gzip", coded[..coded.len() / 2].to_vec()),
        ("cut zstd", "zstd", zstd(&plain)[..1000].to_vec()),
        ("wrong sum", "gzip", wrong_sum),
        ("goes on", "gzip", trailing),
        ("too many codings", "gzip,gzip,gzip,gzip,gzip,gzip", coded),
    ];
    for (what, coding, sent) in rows {
        let request = dialect.post(sent, KEY).header("content-encoding", coding);
        for reply in each_way(&gateway, &request).await {
            assert_eq!(reply.status, 400, "{what}: {}", reply.text());
            let said = message(dialect, &reply);
            assert!(
                said.starts_with("Failed to read request body: "),
                "{what}: {said}"
            );
        }
    }
    assert_eq!(upstream.total(), 0);
}

in_each_dialect!(the_limit_is_on_what_was_decoded);
async fn the_limit_is_on_what_was_decoded(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let zeros = vec![0; 64 * MIB];
    let bombs: [(&str, Vec<u8>); 4] = [
        ("gzip", gzip(&zeros)),
        ("zstd", zstd(&zeros)),
        ("deflate", zlib(&zeros)),
        ("gzip, gzip", gzip(&gzip(&zeros))),
    ];
    drop(zeros);
    let one_more = body(dialect, MIB + 1, true);
    let too_long = [("gzip", gzip(&one_more)), ("zstd", zstd(&one_more))];
    for (coding, sent) in bombs.into_iter().chain(too_long) {
        assert!(sent.len() < MIB, "{coding}: it would be too long as it is");
        let request = dialect.post(sent, KEY).header("content-encoding", coding);
        for reply in each_way(&gateway, &request).await {
            assert_eq!(reply.status, 413, "{coding}: {}", reply.text());
            assert_eq!(
                message(dialect, &reply),
                "Request body too large, limit is 1MB",
                "{coding}"
            );
        }
    }
    assert_eq!(upstream.total(), 0);
    let exact = body(dialect, MIB, true);
    for (coding, sent) in [("gzip", gzip(&exact)), ("zstd", zstd(&exact))] {
        let request = dialect.post(sent, KEY).header("content-encoding", coding);
        for reply in each_way(&gateway, &request).await {
            assert_eq!(reply.status, 200, "{coding}: {}", reply.text());
        }
    }
    for received in upstream.requests() {
        assert_same("decoded", &received.body, &exact);
    }
}

// ---- limits

in_each_dialect!(the_limit_is_exact);
async fn the_limit_is_exact(dialect: Dialect) {
    for (limit, told) in [(100_001, "100001B"), (2 * MIB, "2MB")] {
        let (gateway, upstream) = start(dialect, limit).await;
        for reply in each_way(&gateway, &post(dialect, &body(dialect, limit, true))).await {
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        assert_eq!(upstream.requests().len(), 4);
        // One byte more, and so much more that the client is still sending when it is refused.
        for size in [limit + 1, limit + 16 * MIB] {
            for reply in each_way(&gateway, &post(dialect, &body(dialect, size, true))).await {
                assert_eq!(reply.status, 413, "{size}: {}", reply.text());
                let expected = format!("Request body too large, limit is {told}");
                assert_eq!(message(dialect, &reply), expected, "{size}");
            }
        }
        assert_eq!(upstream.total(), 4);
    }
}

in_each_dialect!(nothing_is_not_a_request);
async fn nothing_is_not_a_request(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let empty = Bytes::new();
    let coded = dialect
        .post(gzip(b""), KEY)
        .header("content-encoding", "gzip");
    for request in [post(dialect, &empty), coded] {
        for reply in each_way(&gateway, &request).await {
            assert_eq!(reply.status, 400, "{}", reply.text());
            assert_eq!(message(dialect, &reply), "Request body is empty");
        }
    }
    // Neither a length nor chunks: there is no body. The connection can be used again.
    let mut client = gateway.h1().await;
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\r\n",
        dialect.path()
    );
    client.send(head.as_bytes()).await.unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!(
        (reply.status, message(dialect, &reply).as_str()),
        (400, "Request body is empty")
    );
    let reply = client
        .request(&post(dialect, &body(dialect, KIB, true)))
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(upstream.total(), 1);
}

in_each_dialect!(broken_chunks_are_refused_and_closed);
/// Where a body in malformed chunks ends, nobody knows: its connection is closed, and nothing behind
/// it is taken for a request.
async fn broken_chunks_are_refused_and_closed(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, MIB).await;
    let next = post(dialect, &body(dialect, KIB, true));
    let next = [next.head_bytes(), next.body_bytes().to_vec()].concat();
    for chunks in [
        "zz\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}",
    ] {
        let mut client = gateway.h1().await;
        let head = post(dialect, &Bytes::new()).chunked(1).head_bytes();
        let bytes = [&head, chunks.as_bytes(), &next].concat();
        client.send(&bytes).await.unwrap();
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, 400, "{chunks:?}: {}", reply.text());
        assert_eq!(
            message(dialect, &reply),
            "Failed to read request body",
            "{chunks:?}"
        );
        assert_eq!(reply.header("connection"), Some("close"), "{chunks:?}");
        let end = client.head().await.unwrap_err();
        assert_ne!(end.kind(), std::io::ErrorKind::TimedOut, "{chunks:?}");
    }
    assert_eq!(upstream.total(), 0);
}

in_each_dialect!(who_leaves_while_uploading_leaves_nothing);
async fn who_leaves_while_uploading_leaves_nothing(dialect: Dialect) {
    let (gateway, upstream) = start(dialect, 8 * MIB).await;
    let request = post(dialect, &body(dialect, 4 * MIB, true));
    let half = request.body_bytes().slice(..2 * MIB);
    for way in ["close", "reset", "half close", "h2 reset", "h2 close"] {
        let arrived = || gateway.metric("inflight_body_bytes") >= half.len() as f64;
        if way.starts_with("h2") {
            let mut client = H2Client::connect(gateway.address).await.unwrap();
            let mut stream = client.start(&request).await.unwrap();
            stream.send(half.clone(), false).await.unwrap();
            gateway.wait(way, arrived).await;
            match way {
                "h2 reset" => stream.reset(),
                _ => drop(client),
            }
        } else {
            let mut client: H1Client = gateway.h1().await;
            client.send(&request.head_bytes()).await.unwrap();
            client.send(&half).await.unwrap();
            gateway.wait(way, arrived).await;
            match way {
                "close" => drop(client),
                "reset" => client.reset(),
                _ => client.half_close().await.unwrap(),
            }
        }
        gateway.wait_metric("inflight_body_bytes", 0.0).await;
        gateway.wait_metric("requests_in_flight", 0.0).await;
    }
    assert_eq!(upstream.total(), 0);
    assert!(gateway.records().is_empty());
}

in_each_dialect!(bodies_in_flight_are_bounded_in_sum);
async fn bodies_in_flight_are_bounded_in_sum(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .set("SERVER__MAX_BODY_BYTES", 2 * MIB)
        .set("SERVER__MAX_INFLIGHT_BODY_BYTES", 3 * MIB)
        .start()
        .await;
    let large = post(dialect, &body(dialect, 2 * MIB, true));
    let gate = Gate::new();
    upstream.push(Answer::echo().after(&gate));
    let mut first = gateway.h1().await;
    first.send_request(&large).await.unwrap();
    gate.wait_reached(1).await;
    for reply in each_way(&gateway, &large).await {
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(dialect.refusal(&reply.json()).0, "api_error");
    }
    // What fits is served meanwhile.
    for reply in each_way(&gateway, &post(dialect, &body(dialect, MIB / 2, true))).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    gate.open();
    assert_eq!(first.reply().await.unwrap().status, 200);
    for reply in each_way(&gateway, &large).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}
