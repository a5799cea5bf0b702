//! Starting, draining, stopping, reloading, dying: and what is on record afterwards.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_test_support::{
    Answer, ClientReply, FakeUpstream, Gate, H1Client, H2Client, Request, TestCa, post_json,
};

use crate::dialect::{Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, LIMIT, Setup, free_address, get};

const MODEL: &str = "gpt-5-mini";

fn request(dialect: Dialect, stream: bool) -> Request {
    dialect.request(dialect.model(), stream, KEY)
}

/// A stream whose first delta comes at once and whose rest waits for the gate.
fn gated(dialect: Dialect, gate: &Gate) -> Answer {
    let free = dialect.cut("resp_1", &["Hel"]).len();
    let whole = dialect.sse("resp_1", &["Hel", "lo", " there"]);
    whole.gated(free, gate)
}

/// A client that has read the first delta of such a stream.
async fn streaming(dialect: Dialect, gateway: &Gateway) -> H1Client {
    let mut client = gateway.h1().await;
    let request = request(dialect, true);
    client.send_request(&request).await.unwrap();
    assert_eq!(client.final_head().await.unwrap().status, 200);
    client.read_until("Hel").await.unwrap();
    client
}

async fn plain(dialect: Dialect, gateway: &Gateway) -> ClientReply {
    let request = request(dialect, false);
    gateway.h1().await.request(&request).await.unwrap()
}

in_each_dialect!(a_drain_lets_running_requests_finish_and_serves_new_ones);
async fn a_drain_lets_running_requests_finish_and_serves_new_ones(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let mut gateway = setup.start().await;
    let gate = Gate::new();
    upstream.push(gated(dialect, &gate));
    let mut client = streaming(dialect, &gateway).await;
    gateway.signal("TERM");
    gateway
        .wait("readiness fails", || {
            gateway.get("/readyz").map(|(status, _)| status) == Some(503)
        })
        .await;
    assert_eq!(gateway.get("/healthz").unwrap().0, 200, "it is alive");
    assert_eq!(gateway.metric("requests_in_flight"), 1.0);
    let reply = plain(dialect, &gateway).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        reply.header("connection"),
        Some("close"),
        "its client is told to go elsewhere with the next"
    );
    gate.open();
    let rest = client.body().await.unwrap();
    assert!(String::from_utf8_lossy(&rest).contains(dialect.ends()));
    let status = gateway.wait_exit();
    assert!(status.success(), "{status}:\n{}", gateway.logged());
    let records = gateway.wait_records(2).await;
    for record in &records {
        assert_eq!(record["outcome"], json!("ok"));
        assert_eq!(record["usage_source"], json!("reported"));
    }
    assert!(gateway.logged().contains("drained"));
}

in_each_dialect!(a_drain_ends_at_its_deadline);
async fn a_drain_ends_at_its_deadline(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let mut gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("GATEWAY__DRAIN_TIMEOUT_MS", 200)
        .start()
        .await;
    let gate = Gate::new();
    upstream.push(gated(dialect, &gate));
    let mut client = streaming(dialect, &gateway).await;
    gateway.signal("TERM");
    let status = gateway.wait_exit();
    assert!(status.success(), "{status}:\n{}", gateway.logged());
    let (rest, end) = client.body_so_far().await;
    assert!(end.is_err(), "no client takes that for a whole answer");
    assert!(!String::from_utf8_lossy(&rest).contains(dialect.ends()));
    let record = gateway.only_record().await;
    assert_eq!(record["outcome"], json!("interrupted"));
    assert_eq!(record["status"], json!(200));
    // What was shown is paid for, as an estimate: the provider had not reported yet.
    assert_eq!(record["usage_source"], json!("estimated"));
    assert_ne!(record["charge"], json!("0"));
    assert!(gateway.logged().contains("time is up"));
}

in_each_dialect!(a_second_signal_ends_the_drain);
async fn a_second_signal_ends_the_drain(dialect: Dialect) {
    for (first, second) in [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")] {
        let upstream = FakeUpstream::start().await;
        // Far beyond the limit of every wait here.
        let timeout = LIMIT.as_millis() * 20;
        let mut gateway = Setup::with(&[&upstream])
            .speaking(dialect)
            .set("GATEWAY__DRAIN_TIMEOUT_MS", timeout)
            .start()
            .await;
        upstream.push(gated(dialect, &Gate::new()));
        let _client = streaming(dialect, &gateway).await;
        gateway.signal(first);
        gateway
            .wait("readiness fails", || {
                gateway.get("/readyz").map(|(status, _)| status) == Some(503)
            })
            .await;
        gateway.signal(second);
        let status = gateway.wait_exit();
        assert!(status.success(), "{status}:\n{}", gateway.logged());
        let record = gateway.only_record().await;
        assert_eq!(record["outcome"], json!("interrupted"), "{first} {second}");
    }
}

in_each_dialect!(idle_connections_are_closed_at_the_end);
async fn idle_connections_are_closed_at_the_end(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let mut gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .start()
        .await;
    let mut used = gateway.h1().await;
    assert_eq!(
        used.request(&request(dialect, false)).await.unwrap().status,
        200
    );
    let mut silent = gateway.h1().await;
    let mut h2 = H2Client::connect(gateway.address).await.unwrap();
    assert_eq!(
        h2.request(&request(dialect, false)).await.unwrap().status,
        200
    );
    gateway.wait_records(2).await;
    gateway.signal("TERM");
    assert!(used.closed_by_peer().await.unwrap());
    // One that never sent anything may be closed or reset.
    let _ = silent.closed_by_peer().await.unwrap();
    let status = gateway.wait_exit();
    assert!(status.success(), "{status}:\n{}", gateway.logged());
    assert!(h2.request(&request(dialect, false)).await.is_err());
    upstream
        .wait_for("no connection left", |_| upstream.open_connections() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_of_a_burst_is_lost_at_the_end() {
    const CLIENTS: usize = 20;
    const EACH: usize = 10;
    let upstream = FakeUpstream::start().await;
    let mut gateway = Setup::with(&[&upstream]).start().await;
    let address = gateway.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            tokio::spawn(async move {
                let mut connection = H1Client::connect(address).await.unwrap();
                for number in 0..EACH {
                    let reply = connection
                        .request(&request(Dialect::Responses, number % 2 == 0))
                        .await
                        .unwrap();
                    assert_eq!(reply.status, 200, "{client}: {}", reply.text());
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    gateway.stop();
    let records = gateway.records();
    assert_eq!(records.len(), CLIENTS * EACH);
    let ids: std::collections::HashSet<_> =
        records.iter().map(|r| r["request_id"].as_str()).collect();
    assert_eq!(ids.len(), CLIENTS * EACH);
    // 200 × 0.0000855.
    assert_eq!(gateway.balance("alice"), "9.9829");

    // And none is written twice by the next server.
    gateway.launch();
    assert_eq!(plain(Dialect::Responses, &gateway).await.status, 200);
    gateway.wait_records(CLIENTS * EACH + 1).await;
}

in_each_dialect!(a_killed_server_starts_again);
async fn a_killed_server_starts_again(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let mut gateway = setup.start().await;
    assert_eq!(plain(dialect, &gateway).await.status, 200);
    gateway.only_record().await;
    upstream.push(gated(dialect, &Gate::new()));
    let mut client = streaming(dialect, &gateway).await;
    gateway.kill();
    assert!(client.body().await.is_err());
    upstream
        .wait_for("its connection is gone", |_| {
            upstream.open_connections() == 0
        })
        .await;
    // Its lock went with it.
    gateway.launch();
    assert_eq!(plain(dialect, &gateway).await.status, 200);
    let records = gateway.records();
    assert!(records.iter().all(|r| r["request_id"].is_string()));
    gateway
        .wait("the new record", || {
            gateway
                .records()
                .iter()
                .filter(|r| r["outcome"] == "ok")
                .count()
                == 2
        })
        .await;
    // `Gateway` asserts at the end that the ledger verifies.
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_reads_the_configuration_again() {
    let file =
        |limit: &str| format!("server:\n  max_body_bytes: {limit}\nlogging: {{ level: info }}\n");
    let upstream = FakeUpstream::start().await;
    let mut setup = Setup::with(&[&upstream]);
    setup.file = Some(file("1000"));
    let gateway = setup.start().await;
    let status = async || {
        let body = json!({"model": MODEL, "input": "x".repeat(2000)});
        let reply = post_json(gateway.address, "/v1/responses", KEY, &body).await;
        reply.unwrap().status
    };
    let reread = async |text: &str, said: &str| {
        let before = gateway.logged().len();
        std::fs::write(gateway.path("tollgate.yaml"), text).unwrap();
        gateway.signal("HUP");
        let since = || gateway.logged()[before..].to_owned();
        gateway.wait(said, || since().contains(said)).await;
        since()
    };
    assert_eq!(status().await, 413);
    reread(&file("4000"), "configuration read again").await;
    assert_eq!(status().await, 200);
    // A broken file: everything stays, and the log says what is wrong with it.
    let log = reread(&file("lots"), "configuration not changed").await;
    assert!(
        log.contains("server.max_body_bytes") && log.contains("lots"),
        "{log}"
    );
    assert_eq!(status().await, 200);
    reread("server: [", "configuration not changed").await;
    assert_eq!(status().await, 200);
    // A price map that cannot be read counts as well.
    let text = file("500") + "billing: { prices: not-there.json }\n";
    reread(&text, "configuration not changed").await;
    assert_eq!(status().await, 200);
    // What a running server cannot change is named.
    let text = file("500") + "admin: { token: \"a-token-of-16-characters\" }\n";
    let log = reread(&text, "configuration read again").await;
    assert!(log.contains("admin has changed"), "{log}");
    assert!(!log.contains("a-token-of-16"), "{log}");
    assert_eq!(status().await, 413);
    reread(&file("4000"), "configuration read again").await;
    assert_eq!(status().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_listener() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    assert_eq!(gateway.get("/healthz"), Some((200, "ok\n".to_owned())));
    assert_eq!(gateway.get("/readyz"), Some((200, "ready\n".to_owned())));
    assert_eq!(gateway.get("/elsewhere").unwrap().0, 404);
    let mut client = H1Client::connect(gateway.admin).await.unwrap();
    let reply = client.request(&Request::get("/metrics")).await.unwrap();
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let reply = client
        .request(&Request::post("/metrics", ""))
        .await
        .unwrap();
    assert_eq!(reply.status, 405);
    // Nothing of it is on the clients' side.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(gateway.address, path).unwrap().0, 404, "{path}");
    }
}

fn tls_setup(upstream: &FakeUpstream, addresses: &[SocketAddr]) -> (Setup, TestCa) {
    let ca = TestCa::new();
    let directory = TempDir::new().unwrap();
    ca.write(directory.path()).unwrap();
    let pem = |name: &str| directory.path().join(name).display().to_string();
    let listen: Vec<Value> = addresses
        .iter()
        .enumerate()
        .map(|(index, addr)| match index {
            0 => json!({"addr": addr, "cert": pem("cert.pem"), "key": pem("key.pem")}),
            _ => json!(addr),
        })
        .collect();
    let mut setup = Setup::with(&[upstream]).set("SERVER__LISTEN", Value::from(listen));
    setup.directory = Some(directory);
    (setup, ca)
}

in_each_dialect!(tls_with_either_protocol_beside_cleartext);
async fn tls_with_either_protocol_beside_cleartext(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let (secure, clear) = (free_address(), free_address());
    let (setup, ca) = tls_setup(&upstream, &[secure, clear]);
    let gateway = setup.speaking(dialect).start().await;
    let mut h2 = H2Client::connect_tls(secure, &ca).await.unwrap();
    let mut h1 = H1Client::connect_tls(secure, &ca).await.unwrap();
    let mut plain = H1Client::connect(clear).await.unwrap();
    for round in 0..2 {
        for stream in [false, true] {
            let request = request(dialect, stream);
            for reply in [
                h2.request(&request).await.unwrap(),
                h1.request(&request).await.unwrap(),
                plain.request(&request).await.unwrap(),
            ] {
                assert_eq!(reply.status, 200, "{round}: {}", reply.text());
                if stream {
                    let types = reply.event_types();
                    assert_eq!(types.last().unwrap(), dialect.ends());
                }
            }
        }
    }
    // Errors are the same on HTTP/2, and the connection goes on.
    let refused = dialect.post("{}", "tg-nobody-0123456789abcdef");
    let reply = h2.request(&refused).await.unwrap();
    assert_eq!(reply.status, 401);
    let said = ("authentication_error", "Invalid API key");
    assert_eq!(dialect.refusal(&reply.json()), said);
    assert!(reply.header("x-request-id").unwrap().starts_with("req_"));
    assert_eq!(reply.header("connection"), None);
    assert_eq!(
        h2.request(&request(dialect, false)).await.unwrap().status,
        200
    );
    gateway.wait_records(13).await;
    // Cleartext on the TLS port gets nowhere, and hurts nobody.
    let mut wrong = H1Client::connect(secure).await.unwrap();
    let reply = wrong.request(&request(dialect, false)).await;
    assert!(reply.is_err(), "{reply:?}");
    // Another authority's client does not trust the certificate.
    assert!(H1Client::connect_tls(secure, &TestCa::new()).await.is_err());
    assert_eq!(
        h1.request(&request(dialect, false)).await.unwrap().status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_used_is_named() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let (cert, key) = (gateway.path("cert.pem"), gateway.path("key.pem"));
    std::fs::write(&cert, "no certificate").unwrap();
    std::fs::write(&key, "no key").unwrap();
    let listen = json!([{"addr": free_address(), "cert": cert, "key": key}]);
    let output = gateway
        .command()
        .arg("serve")
        .env("TOLLGATE_DATA_DIR", gateway.path("other"))
        .env("TOLLGATE_SERVER__LISTEN", listen.to_string())
        .env("TOLLGATE_ADMIN__LISTEN", free_address().to_string())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("server.listen[0]"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

in_each_dialect!(one_port_takes_both_protocols_in_cleartext);
async fn one_port_takes_both_protocols_in_cleartext(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .start()
        .await;
    let mut h1 = gateway.h1().await;
    let mut h2 = H2Client::connect(gateway.address).await.unwrap();
    for stream in [false, true, false] {
        let request = request(dialect, stream);
        for reply in [
            h1.request(&request).await.unwrap(),
            h2.request(&request).await.unwrap(),
        ] {
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    }
    // Streams of one connection run beside each other.
    let gate = Gate::new();
    upstream.push(gated(dialect, &gate));
    let mut waiting = h2.send_request(&request(dialect, true)).await.unwrap();
    assert_eq!(waiting.head().await.unwrap(), 200);
    assert_eq!(
        h2.request(&request(dialect, false)).await.unwrap().status,
        200
    );
    gate.open();
    let reply = waiting.reply().await.unwrap();
    assert_eq!(reply.event_types().last().unwrap(), dialect.ends());
    gateway.wait_records(8).await;

    // Without the setting the port speaks HTTP/1.1 only.
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    if let Ok(mut h2) = H2Client::connect(gateway.address).await {
        assert!(h2.request(&request(dialect, false)).await.is_err());
    }
    assert_eq!(plain(dialect, &gateway).await.status, 200);
}
