//! Accounts whose connections go through an egress proxy: real ones from Debian, with the provider
//! behind a door that notes where connections come from.

mod proxies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::config::load_resources;
use tollgate::domain::Secret;
use tollgate::storage::{ApplyOptions, Store};
use tollgate_test_support::{
    Answer, ClientReply, FakeUpstream, Gate, Request, TestCa, Usage, openai, post_json,
};

use self::proxies::{DIRECT, Door, LOGIN, OTHER_SOURCE, OddProxy, PASSWORD, Proxy, SOURCE};
use crate::call::{Call, Protocol, request};
use crate::harness::{Gateway, KEY, Setup, ask, free_address, key_of};

/// An account's egress proxy, in the resources.
fn go_through(resources: &mut Value, account: &str, proxy: &str) {
    let accounts = resources["accounts"].as_array_mut().unwrap();
    let account = accounts.iter_mut().find(|a| a["name"] == account).unwrap();
    account["proxy"] = if proxy.is_empty() {
        Value::Null
    } else {
        json!(proxy)
    };
}

fn setup(url: &str) -> Setup {
    let mut setup = Setup::new(&[url.to_owned()]);
    setup.resources["accounts"][0]["enabled"] = json!(false);
    setup
}

fn trusting(setup: Setup, folder: &Path, ca: &TestCa) -> Setup {
    ca.write(folder).unwrap();
    setup.env("SSL_CERT_FILE", folder.join("ca.pem").display())
}

async fn asked(gateway: &Gateway, key: &str) -> ClientReply {
    let body = ask("fake-text", true);
    post_json(gateway.address, "/v1/responses", key, &body)
        .await
        .unwrap()
}

fn assert_discreet(gateway: &Gateway) {
    let log = gateway.logged();
    for secret in [PASSWORD, LOGIN, "prx-user", "prx-p"] {
        assert!(!log.contains(secret), "a credential in the log:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_proxy_carries_requests_and_keeps_connections() {
    let ca = TestCa::new();
    let folder = TempDir::new().unwrap();
    let open = Proxy::tinyproxy(SOURCE, "");
    let closed = Proxy::tinyproxy_with_login();
    let tls_open = Proxy::tls_before(&open, &ca);
    let tls_closed = Proxy::tls_before(&closed, &ca);
    let socks = Proxy::microsocks(false);
    let socks_login = Proxy::microsocks(true);
    let proxies = [
        ("http", open.url("http", "")),
        ("http-login", closed.url("http", LOGIN)),
        ("https", tls_open.url("https", "")),
        ("https-login", tls_closed.url("https", LOGIN)),
        ("socks5", socks.url("socks5", "")),
        ("socks5-login", socks_login.url("socks5h", LOGIN)),
    ];
    // Doors outlive the server's kept connections.
    let mut rows = Vec::new();
    let mut setup = trusting(setup("http://127.0.0.1:9"), folder.path(), &ca);
    for (name, proxy) in &proxies {
        for is_tls in [false, true] {
            let provider = match is_tls {
                true => FakeUpstream::start_tls(&ca).await,
                false => FakeUpstream::start().await,
            };
            let door = Door::before(provider.address()).await;
            let url = match is_tls {
                true => format!("https://localhost:{}", door.address.port()),
                false => format!("http://{}", door.address),
            };
            let group = format!("{name}-{}", if is_tls { "h2" } else { "h1" });
            setup = setup
                .group(&group, &[(&group, &url)])
                .resources(|r| go_through(r, &group, proxy));
            rows.push((group, is_tls, provider, door));
        }
    }
    let gateway = setup.start().await;
    for (group, is_tls, provider, door) in &rows {
        let key = key_of(group);
        let mut client = gateway.h1().await;
        // Small and large, streamed and not; the fake checks the length of what it was sent.
        let large = json!({ "model": "fake-text", "input": "x".repeat(1 << 20), "stream": true });
        for body in [ask("fake-text", false), ask("fake-text", true), large] {
            let body = body.to_string();
            let request = Request::post("/v1/responses", body.clone()).bearer(&key);
            let reply = client.request(&request).await.unwrap();
            assert_eq!(reply.status, 200, "{group}: {}", reply.text());
            if body.contains("\"stream\":true") {
                let last = reply.event_types().pop();
                assert_eq!(last.as_deref(), Some("response.completed"), "{group}");
            }
            let seen = provider.requests();
            assert_eq!(seen.last().unwrap().body, body.as_bytes(), "{group}");
        }
        let version = if *is_tls {
            http::Version::HTTP_2
        } else {
            http::Version::HTTP_11
        };
        for seen in provider.requests() {
            assert_eq!(seen.version, version, "{group}");
            assert_eq!(seen.header("proxy-authorization"), None, "{group}");
        }
        // One connection for the three requests, and it came from the proxy.
        assert_eq!(door.seen(), [SOURCE], "{group}");
    }
    let records = gateway.wait_records(rows.len() * 3).await;
    assert!(
        records
            .iter()
            .all(|r| r["outcome"] == "ok" && r["attempts"] == 1)
    );
    for (proxy, word) in [
        (&open, "CONNECT"),
        (&closed, "CONNECT"),
        (&socks, "connected to"),
    ] {
        assert!(proxy.logged().contains(word), "{}", proxy.logged());
    }
    assert_discreet(&gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_through_each_proxy() {
    let ca = TestCa::new();
    let folder = TempDir::new().unwrap();
    let http = Proxy::tinyproxy_with_login();
    let https = Proxy::tls_before(&http, &ca);
    let socks = Proxy::microsocks(true);
    let provider = FakeUpstream::start().await;
    let door = Door::before(provider.address()).await;
    let url = format!("http://{}", door.address);
    let mut setup = trusting(setup(&url), folder.path(), &ca);
    let proxies = [
        ("http", http.url("http", LOGIN)),
        ("https", https.url("https", LOGIN)),
        ("socks5", socks.url("socks5", LOGIN)),
    ];
    for (name, proxy) in &proxies {
        setup = setup
            .group(name, &[(name, &url)])
            .resources(|r| go_through(r, name, proxy));
    }
    let gateway = setup.start().await;
    for round in 0..3 {
        let mut calls = Vec::new();
        for (name, _) in &proxies {
            for _ in 0..10 {
                let request = request("fake-text", true, &key_of(name));
                calls.push(async {
                    let request = request;
                    let reply = gateway.h1().await.request(&request).await.unwrap();
                    (reply.status, reply.event_types().pop())
                });
            }
        }
        for (status, last) in join_all(calls).await {
            assert_eq!(
                (status, last.as_deref()),
                (200, Some("response.completed")),
                "{round}"
            );
        }
    }
    assert!(door.seen().iter().all(|from| *from == SOURCE));
    // At most one for each request of a round, when each had to make its own.
    assert!(door.seen().len() <= 30, "{}", door.seen().len());
    gateway.wait_records(90).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_cannot_be_used_is_an_error_and_nothing_goes_directly() {
    let (ca, unknown) = (TestCa::new(), TestCa::new());
    let folder = TempDir::new().unwrap();
    let open = Proxy::tinyproxy(SOURCE, "");
    let closed = Proxy::tinyproxy_with_login();
    let strict = Proxy::tinyproxy(SOURCE, "ConnectPort 1\n");
    let socks = Proxy::microsocks(false);
    let socks_login = Proxy::microsocks(true);
    let tls_unknown = Proxy::tls_before(&open, &unknown);
    let silent = OddProxy::start(&[], None).await;
    let silent_later = OddProxy::start(&[b"\x05\x00"], None).await;
    let garbage = OddProxy::start(&[b"SSH-2.0-OpenSSH_9.2\r\n"], None).await;
    let endless = OddProxy::start(&[b"HTTP/1.1 200 OK\r\nX: "], None).await;
    let (silent_at, later_at) = (silent.address, silent_later.address);
    let (garbage_at, endless_at) = (garbage.address, endless.address);
    let nobody = free_address();
    let provider = FakeUpstream::start().await;
    let door = Door::before(provider.address()).await;
    let url = format!("http://{}", door.address);
    let no_provider = format!("http://{}", free_address());

    // What the log says of it, with the proxy's address before it.
    let limit = "took longer than 700ms";
    let none = "it wants a user and password, and the account's proxy address has none";
    let rows: Vec<(String, &str, String)> = [
        (
            closed.url("http", "prx-user:wrong"),
            &url,
            "it refuses the credential",
        ),
        (closed.url("http", ""), &url, none),
        (
            socks_login.url("socks5", "prx-user:wrong"),
            &url,
            "it refuses the credential",
        ),
        (socks_login.url("socks5", ""), &url, none),
        (
            socks.url("socks5", LOGIN),
            &url,
            "it takes no user and password",
        ),
        (
            format!("http://{LOGIN}@{nobody}"),
            &url,
            "Connection refused",
        ),
        (
            format!("https://{LOGIN}@{nobody}"),
            &url,
            "Connection refused",
        ),
        (
            format!("socks5://{LOGIN}@{nobody}"),
            &url,
            "Connection refused",
        ),
        (strict.url("http", ""), &url, "(status 403)"),
        (open.url("http", ""), &no_provider, "status 5"),
        (
            socks.url("socks5", ""),
            &no_provider,
            "connection refused (code 5)",
        ),
        (format!("http://{LOGIN}@{silent_at}"), &url, limit),
        (format!("https://{LOGIN}@{silent_at}"), &url, limit),
        (format!("socks5://{LOGIN}@{silent_at}"), &url, limit),
        (format!("socks5://{later_at}"), &url, limit),
        (format!("http://{endless_at}"), &url, limit),
        (
            format!("http://{garbage_at}"),
            &url,
            "its answer is not HTTP/1",
        ),
        (format!("https://{garbage_at}"), &url, "no TLS with it"),
        (
            format!("socks5://{garbage_at}"),
            &url,
            "its answer is not SOCKS5",
        ),
        (open.url("socks5", ""), &url, ""),
        (socks.url("http", ""), &url, ""),
        (
            format!("https://localhost:{}", open.address.port()),
            &url,
            "TLS with it",
        ),
        (
            tls_unknown.url("https", ""),
            &url,
            "invalid peer certificate",
        ),
        (
            format!("http://{LOGIN}@proxy.invalid:3128"),
            &url,
            "cannot resolve proxy.invalid",
        ),
    ]
    .into_iter()
    .map(|(proxy, url, word)| (proxy, url.as_str(), word.to_owned()))
    .collect();

    let spare = FakeUpstream::start().await;
    let mut setup =
        trusting(setup(&url), folder.path(), &ca).set("GATEWAY__CONNECT_TIMEOUT_MS", 700);
    for (row, (proxy, url, _)) in rows.iter().enumerate() {
        let (alone, first) = (format!("alone{row}"), format!("first{row}"));
        let spare = (&*format!("spare{row}"), &*spare.url());
        setup = setup
            .group(&alone, &[(&alone, url)])
            .group(&first, &[(&first, url), spare])
            .resources(|r| {
                go_through(r, &alone, proxy);
                go_through(r, &first, proxy);
            });
    }
    let gateway = setup.start().await;
    for (row, (proxy, _, word)) in rows.iter().enumerate() {
        // With no other account it is the provider's failure, as far as the client is told.
        let began = Instant::now();
        let reply = asked(&gateway, &key_of(&format!("alone{row}"))).await;
        assert_eq!(reply.status, 502, "{proxy}: {}", reply.text());
        assert!(began.elapsed() < Duration::from_secs(10), "{proxy}");
        assert!(!reply.text().contains("prx"), "{}", reply.text());
        // With another one the client does not notice.
        let request = request("fake-text", true, &key_of(&format!("first{row}")));
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{proxy}: {}", reply.text());
        // The log says which proxy, and why.
        let (scheme, rest) = proxy.split_once("://").unwrap();
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let log = gateway.logged();
        let account = format!("account \"alone{row}\": egress proxy {scheme}://{place}: ");
        let line = log.lines().find(|line| line.contains(&account));
        let line = line.unwrap_or_else(|| panic!("{account} not in\n{log}"));
        assert!(line.contains(word.as_str()), "{word}: {line}");
    }
    assert_eq!(door.seen(), Vec::<IpAddr>::new());
    assert_eq!((provider.connections(), provider.total()), (0, 0));
    assert_eq!(spare.total(), rows.len() as u64);
    let failed = "attempts_total{platform=\"openai\",result=\"egress_proxy\"}";
    assert_eq!(gateway.metric(failed), 2.0 * rows.len() as f64);
    gateway
        .wait("a record of each answer", || {
            let records = gateway.records();
            records.iter().filter(|r| r["outcome"] == "ok").count() == rows.len()
        })
        .await;
    assert_discreet(&gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_providers_name_goes_to_the_proxy_as_it_is() {
    // No resolver knows this name; the proxy, which is asked for it, does.
    let ca = TestCa::for_names(&["provider.invalid"]);
    let folder = TempDir::new().unwrap();
    let provider = FakeUpstream::start_tls(&ca).await;
    let at = Some(provider.address());
    let http = OddProxy::start(&[b"HTTP/1.0 200 fine\r\n\r\n"], at).await;
    let socks = OddProxy::start(&[b"\x05\x00", b"\x05\x00\x00\x03\x02ab\x00\x01"], at).await;
    let url = "https://provider.invalid:8443";
    let gateway = trusting(setup(url), folder.path(), &ca)
        .group("http", &[("http", url)])
        .group("socks", &[("socks", url)])
        .resources(|r| {
            go_through(r, "http", &format!("http://{}", http.address));
            go_through(r, "socks", &format!("socks5://{}", socks.address));
        })
        .start()
        .await;
    for group in ["http", "socks"] {
        let request = request("fake-text", false, &key_of(group));
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{group}: {}", reply.text());
    }
    let asked = "CONNECT provider.invalid:8443 HTTP/1.1\r\nHost: provider.invalid:8443\r\n\r\n";
    assert_eq!(http.said(), [asked.as_bytes()]);
    let asked: [&[u8]; 2] = [
        b"\x05\x01\x00",
        b"\x05\x01\x00\x03\x10provider.invalid\x20\xfb",
    ];
    assert_eq!(socks.said(), asked);
    assert_eq!(provider.total(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_share_no_connection_through_one_proxy() {
    let ca = TestCa::new();
    let folder = TempDir::new().unwrap();
    let proxy = Proxy::tinyproxy(SOURCE, "");
    let provider = FakeUpstream::start_tls(&ca).await;
    let door = Door::before(provider.address()).await;
    let url = format!("https://localhost:{}", door.address.port());
    let gateway = trusting(setup(&url), folder.path(), &ca)
        .group("one", &[("one", &url)])
        .group("two", &[("two", &url)])
        .group("direct", &[("direct", &url)])
        .resources(|r| {
            go_through(r, "one", &proxy.url("http", ""));
            go_through(r, "two", &proxy.url("http", ""));
        })
        .start()
        .await;
    for group in ["one", "two", "direct", "one", "two", "direct"] {
        let request = request("fake-text", true, &key_of(group));
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{group}: {}", reply.text());
    }
    assert_eq!(door.seen(), [SOURCE, SOURCE, DIRECT]);
    let mut credentials = BTreeMap::<u64, BTreeSet<String>>::new();
    for seen in provider.requests() {
        let credential = seen.credential().unwrap_or_default().to_owned();
        credentials
            .entry(seen.connection)
            .or_default()
            .insert(credential);
    }
    assert_eq!(credentials.len(), 3);
    assert!(
        credentials.values().all(|c| c.len() == 1),
        "{credentials:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_proxy_by_apply_leaves_the_old_connections_unused() {
    let ca = TestCa::new();
    let folder = TempDir::new().unwrap();
    let first = Proxy::tinyproxy_with_login();
    let second = Proxy::tinyproxy(OTHER_SOURCE, "");
    let tls = Proxy::tls_before(&first, &ca);
    for is_tls in [false, true] {
        let provider = match is_tls {
            true => FakeUpstream::start_tls(&ca).await,
            false => FakeUpstream::start().await,
        };
        let door = Door::before(provider.address()).await;
        let url = match is_tls {
            true => format!("https://localhost:{}", door.address.port()),
            false => format!("http://{}", door.address),
        };
        let mut setup = trusting(Setup::new(&[url]), folder.path(), &ca);
        go_through(&mut setup.resources, "a1", &first.url("http", LOGIN));
        let mut resources = setup.resources.clone();
        let gateway = setup.start().await;
        let mut expected = vec![SOURCE];
        let again = async |status: u16| {
            // On one connection: the next request comes when the one before has given back its own.
            let mut client = gateway.h1().await;
            for _ in 0..2 {
                let request = request("fake-text", true, KEY);
                let reply = client.request(&request).await.unwrap();
                assert_eq!(reply.status, status, "{}", reply.text());
                if status != 200 {
                    client = gateway.h1().await;
                }
            }
        };
        again(200).await;
        assert_eq!(door.seen(), expected);
        // Each step: what the account goes through from now on, and where its new connection, if
        // there is one, comes from.
        for (proxy, status, new) in [
            (second.url("http", ""), 200, Some(OTHER_SOURCE)),
            (tls.url("https", LOGIN), 200, Some(SOURCE)),
            (String::new(), 200, Some(DIRECT)),
            // The very same as at first: its connection is still good, and still its own.
            (first.url("http", LOGIN), 200, None),
            // Another credential is another proxy.
            (first.url("http", "prx-user:wrong"), 502, None),
            // `resume` lifts what the failures did to the account.
            (second.url("http", ""), 200, None),
        ] {
            go_through(&mut resources, "a1", &proxy);
            let before = gateway.metric("directory_reloads_total");
            gateway.apply(&resources);
            gateway.run(&["accounts", "resume", "a1"]);
            gateway
                .wait("the server follows", || {
                    gateway.metric("directory_reloads_total") > before
                })
                .await;
            again(status).await;
            expected.extend(new);
            assert_eq!(door.seen(), expected, "{}", is_tls);
        }
        assert_discreet(&gateway);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_dies_takes_its_streams_with_it_and_nothing_goes_directly() {
    let ca = TestCa::new();
    let folder = TempDir::new().unwrap();
    for kind in ["http", "https", "socks5"] {
        let behind = match kind {
            "socks5" => Proxy::microsocks(false),
            _ => Proxy::tinyproxy(SOURCE, ""),
        };
        let front = (kind == "https").then(|| Proxy::tls_before(&behind, &ca));
        let proxy = front.as_ref().unwrap_or(&behind).url(kind, "");
        let provider = FakeUpstream::start().await;
        let door = Door::before(provider.address()).await;
        let mut setup = Setup::new(&[format!("http://{}", door.address)]);
        setup = trusting(setup, folder.path(), &ca).resources(|r| go_through(r, "a1", &proxy));
        let gateway = setup.start().await;
        let gate = Gate::new();
        let stream = openai::responses_stream(
            "gpt-5-mini",
            "resp_1",
            &["one", "two", "three"],
            Usage::default(),
        );
        let free = stream.len() - 3;
        provider.push(Answer::sse(stream).gated(free, &gate));
        let request = request("gpt-5-mini", true, KEY);
        let mut call = Call::send(&gateway, Protocol::H1, &request).await;
        assert_eq!(call.head().await.unwrap().status, 200, "{kind}");
        call.read_until("one", 1).await;
        drop(front);
        drop(behind);
        let (rest, _) = call.rest().await;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(!rest.contains("response.completed"), "{kind}: {rest}");
        assert!(rest.contains("error"), "{kind}: {rest}");
        gate.open();
        let reply = asked(&gateway, KEY).await;
        assert!(reply.status >= 500, "{kind}");
        assert_eq!(door.seen(), [SOURCE], "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_whose_stored_proxy_cannot_be_read_is_not_used() {
    let provider = FakeUpstream::start().await;
    let setup = Setup::with(&[&provider]);
    let secret = Secret::new(setup.config["SECURITY__SECRET"].clone());
    let resources = setup.resources.to_string();
    let gateway = setup.start().await;
    assert_eq!(asked(&gateway, KEY).await.status, 200);
    // `apply` takes no such address: another version, or somebody with a database client, does.
    let path = gateway.path("resources.json");
    std::fs::write(&path, resources).unwrap();
    let (mut resources, _) = load_resources(&[path], &BTreeMap::new()).unwrap();
    resources.accounts[0].proxy = Some(Secret::new(format!("gopher://{LOGIN}@127.0.0.1:70")));
    let store = Store::open(&gateway.data(), &secret).await.unwrap();
    let before = gateway.metric("directory_reloads_total");
    store
        .apply(&resources, ApplyOptions::default())
        .await
        .unwrap();
    store.close().await.unwrap();
    gateway
        .wait("the server follows", || {
            gateway.metric("directory_reloads_total") > before
        })
        .await;
    let reply = asked(&gateway, KEY).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(provider.total(), 1);
    let log = gateway.logged();
    let line = "account \"a1\" cannot be used: its egress proxy is none of http://";
    assert!(log.contains(line), "{log}");
    assert_discreet(&gateway);
}
