//! Each dialogue is played by a proxy in memory, with the proxy's side cut at every byte.

use tokio::io::DuplexStream;

use super::*;
use crate::domain::EgressProxy;

const TUNNEL: &[u8] = b"first bytes of the tunnel";

fn target(url: &str) -> Target {
    Target::parse(url).unwrap()
}

fn credential(proxy: &str) -> Option<EgressCredential> {
    EgressProxy::parse(proxy).unwrap().credential
}

/// What the client has to say, and what it is answered.
type Dialogue<'a> = &'a [(&'a [u8], &'a [u8])];

/// Plays the proxy: each answer in two pieces, cut at `cut` (counted over all answers). The last
/// answer of a good dialogue is followed by the tunnel's bytes. Then it closes.
async fn play(mut proxy: DuplexStream, dialogue: Vec<(Vec<u8>, Vec<u8>)>, mut cut: usize) {
    for (expected, answer) in dialogue {
        let mut said = vec![0; expected.len()];
        proxy.read_exact(&mut said).await.unwrap();
        assert_eq!(said, expected, "{}", String::from_utf8_lossy(&said));
        let (now, later) = answer.split_at(cut.min(answer.len()));
        cut = cut.saturating_sub(answer.len());
        for piece in [now, later] {
            // A client that has given up reads no more.
            if proxy.write_all(piece).await.is_err() {
                return;
            }
            // The other side runs and reads what there is.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn owned(dialogue: Dialogue<'_>, tunnel: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut owned: Vec<_> = dialogue
        .iter()
        .map(|(a, b)| (a.to_vec(), b.to_vec()))
        .collect();
    owned.last_mut().unwrap().1.extend_from_slice(tunnel);
    owned
}

fn lengths(dialogue: Dialogue<'_>) -> usize {
    dialogue.iter().map(|(_, answer)| answer.len()).sum()
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Socks5,
}

/// The outcome, or the tunnel's bytes as they come out behind the handshake.
async fn shake(
    kind: Kind,
    mut client: DuplexStream,
    target: &Target,
    credential: Option<&EgressCredential>,
) -> Result<Vec<u8>, HandshakeError> {
    let mut seen = match kind {
        Kind::Http => http_connect(&mut client, target, credential).await?,
        Kind::Socks5 => {
            socks5_connect(&mut client, target, credential).await?;
            Vec::new()
        }
    };
    client.read_to_end(&mut seen).await?;
    Ok(seen)
}

/// The same dialogue cut at every byte, and byte by byte; the outcome is always the same.
async fn at_every_cut(
    kind: Kind,
    target: &Target,
    credential: Option<&EgressCredential>,
    dialogue: Dialogue<'_>,
) -> Result<(), String> {
    let mut outcomes = Vec::new();
    for cut in 0..=lengths(dialogue) + TUNNEL.len() {
        for buffer in [1, 64 * 1024] {
            let (client, proxy) = tokio::io::duplex(buffer);
            let player = tokio::spawn(play(proxy, owned(dialogue, TUNNEL), cut));
            let outcome = shake(kind, client, target, credential).await;
            player.await.unwrap();
            if let Ok(seen) = &outcome {
                assert_eq!(seen, TUNNEL, "swallowed or invented, cut at {cut}");
            }
            outcomes.push(outcome.map(drop).map_err(|error| error.to_string()));
        }
    }
    let first = outcomes[0].clone();
    assert!(outcomes.iter().all(|o| *o == first), "{outcomes:?}");
    first
}

#[tokio::test]
async fn http_answers_are_told_apart() {
    let to = target("https://api.example.com/v1");
    let ask = b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n";
    let long = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
        "x".repeat(HEAD_MAX - 200)
    );
    for (answer, outcome) in [
        (&b"HTTP/1.1 200 Connection established\r\n\r\n"[..], Ok(())),
        (b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n", Ok(())),
        (b"HTTP/1.1 200\r\n\r\n", Ok(())),
        (b"HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n", Ok(())),
        (b"HTTP/1.1 299 odd\nbare: newlines\n\n", Ok(())),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 P\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            Ok(()),
        ),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!",
            Err("it wants a user and password, and the account's proxy address has none"),
        ),
        (
            b"HTTP/1.0 401 U\r\n\r\n",
            Err("it wants a user and password, and the account's proxy address has none"),
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            Err("it refuses to connect to api.example.com:443 (status 403)"),
        ),
        (
            b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
            Err("it cannot reach api.example.com:443 (status 502)"),
        ),
        (
            b"HTTP/1.1 504 X\r\n\r\n",
            Err("it cannot reach api.example.com:443 (status 504)"),
        ),
        (
            b"HTTP/1.1 101 Switching\r\n\r\n",
            Err("it answers CONNECT with status 101"),
        ),
        (
            b"HTTP/1.1 302 Found\r\n\r\n",
            Err("it answers CONNECT with status 302"),
        ),
        (
            b"HTTP/1.1 500 Oops\r\n\r\n",
            Err("it answers CONNECT with status 500"),
        ),
        (b"HTTP/2 200\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"HTTP/1.2 200\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"HTTP/1.1 20\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"HTTP/1.1 2000\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"HTTP/1.1 +20\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"HTTP/1.1 099\r\n\r\n", Err("its answer is not HTTP/1")),
        (b"SSH-2.0-OpenSSH\r\n", Err("its answer is not HTTP/1")),
        (b"\x15\x03\x01\x00\x02\x02", Err("its answer is not HTTP/1")),
    ] {
        let got = at_every_cut(Kind::Http, &to, None, &[(ask, answer)]).await;
        assert_eq!(
            got,
            outcome.map_err(str::to_owned),
            "{}",
            answer.escape_ascii()
        );
    }
    // Too long to be cut everywhere.
    let (client, proxy) = tokio::io::duplex(1024);
    let player = tokio::spawn(play(
        proxy,
        owned(&[(ask, long.as_bytes())], TUNNEL),
        usize::MAX,
    ));
    assert_eq!(shake(Kind::Http, client, &to, None).await.unwrap(), TUNNEL);
    player.await.unwrap();
}

#[tokio::test]
async fn a_header_without_an_end_is_not_read_for_ever() {
    for line in ["X: y\r\n", "endless "] {
        let (mut client, mut proxy) = tokio::io::duplex(1000);
        let player = tokio::spawn(async move {
            proxy.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            let mut sent = 0;
            while proxy.write_all(line.as_bytes()).await.is_ok() {
                sent += line.len();
            }
            sent
        });
        let error = http_connect(&mut client, &target("http://h"), None)
            .await
            .unwrap_err();
        assert!(matches!(error, HandshakeError::HeadTooLong), "{error}");
        drop(client);
        let sent = player.await.unwrap();
        assert!((HEAD_MAX - 1000..HEAD_MAX + 1100).contains(&sent), "{sent}");
    }
}

#[tokio::test]
async fn http_says_who_we_are_and_where_to() {
    let login = credential("http://us%C3%A9r:p%3Aw%20d@h");
    // "usér:p:w d" in base64.
    let asked = b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\
        Proxy-Authorization: Basic dXPDqXI6cDp3IGQ=\r\n\r\n";
    let to = target("https://[2001:DB8::1]:8443");
    for (answer, outcome) in [
        (&b"HTTP/1.1 200 OK\r\n\r\n"[..], Ok(())),
        (
            b"HTTP/1.1 407 No\r\n\r\n",
            Err("it refuses the credential".to_owned()),
        ),
        (
            b"HTTP/1.1 401 No\r\n\r\n",
            Err("it refuses the credential".to_owned()),
        ),
    ] {
        let got = at_every_cut(Kind::Http, &to, login.as_ref(), &[(asked, answer)]).await;
        assert_eq!(got, outcome);
    }
}

#[tokio::test]
async fn socks5_carries_names_and_addresses() {
    let greeting: (&[u8], &[u8]) = (b"\x05\x01\x00", b"\x05\x00");
    let (name4, bound4) = (b"\x05\x00\x00\x01\x7f\0\0\x01\x12\x34", "IPv4");
    let requests: [(&str, &[u8]); 3] = [
        (
            "https://api.example.com",
            b"\x05\x01\x00\x03\x0fapi.example.com\x01\xbb",
        ),
        (
            "http://192.0.2.7:8080",
            b"\x05\x01\x00\x01\xc0\x00\x02\x07\x1f\x90",
        ),
        (
            "http://[2001:db8::1]",
            b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50",
        ),
    ];
    let bound: [(&str, &[u8]); 4] = [
        (bound4, name4),
        (
            "IPv6",
            b"\x05\x00\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x34",
        ),
        ("name", b"\x05\x00\x00\x03\x05proxy\x12\x34"),
        ("empty name", b"\x05\x00\x00\x03\x00\x12\x34"),
    ];
    for (url, request) in requests {
        for (what, answer) in bound {
            let dialogue: Dialogue<'_> = &[greeting, (request, answer)];
            let got = at_every_cut(Kind::Socks5, &target(url), None, dialogue).await;
            assert_eq!(got, Ok(()), "{url}, bound to {what}");
        }
    }
    let longest = format!("\x05\0\0\x03\u{7f}{}\x12\x34", "n".repeat(127));
    let dialogue: Dialogue<'_> = &[greeting, (requests[0].1, longest.as_bytes())];
    let got = at_every_cut(Kind::Socks5, &target(requests[0].0), None, dialogue).await;
    assert_eq!(got, Ok(()));
}

#[tokio::test]
async fn socks5_logs_in_when_there_is_a_credential_and_never_without() {
    let login = credential("socks5://user:pass@h");
    let to = target("http://h:1");
    let request: &[u8] = b"\x05\x01\x00\x03\x01h\x00\x01";
    let fine: &[u8] = b"\x05\x00\x00\x01\0\0\0\0\0\0";
    let offer: &[u8] = b"\x05\x01\x02";
    let said: &[u8] = b"\x01\x04user\x04pass";
    let refused = Err("it refuses the credential".to_owned());
    let rows: [(Dialogue<'_>, Result<(), String>); 6] = [
        (
            &[(offer, b"\x05\x02"), (said, b"\x01\x00"), (request, fine)],
            Ok(()),
        ),
        (
            &[(offer, b"\x05\x02"), (said, b"\x05\x00"), (request, fine)],
            Ok(()),
        ),
        (
            &[(offer, b"\x05\x02"), (said, b"\x01\x01")],
            refused.clone(),
        ),
        (&[(offer, b"\x05\x02"), (said, b"\x01\xff")], refused),
        (
            &[(offer, b"\x05\xff")],
            Err("it takes no user and password, but the account's proxy address has them".into()),
        ),
        // A method that was not offered.
        (
            &[(offer, b"\x05\x00")],
            Err("its answer is not SOCKS5".into()),
        ),
    ];
    for (dialogue, outcome) in rows {
        let got = at_every_cut(Kind::Socks5, &to, login.as_ref(), dialogue).await;
        assert_eq!(got, outcome);
    }
    let got = at_every_cut(Kind::Socks5, &to, None, &[(b"\x05\x01\x00", b"\x05\xff")]).await;
    let missing = "it wants a user and password, and the account's proxy address has none";
    assert_eq!(got, Err(missing.to_owned()));

    let longest = format!("socks5://{}:{}@h", "u".repeat(255), "p".repeat(255));
    let login = credential(&longest);
    let mut said = vec![1, 255];
    said.extend([b'u'; 255]);
    said.push(255);
    said.extend([b'p'; 255]);
    let dialogue: Dialogue<'_> = &[(offer, b"\x05\x02"), (&said, b"\x01\x00"), (request, fine)];
    let got = at_every_cut(Kind::Socks5, &to, login.as_ref(), dialogue).await;
    assert_eq!(got, Ok(()));
}

#[tokio::test]
async fn every_socks5_reply_code_has_a_name() {
    let names = [
        "general failure",
        "not allowed by its rules",
        "network unreachable",
        "host unreachable",
        "connection refused",
        "time to live expired",
        "command not supported",
        "address type not supported",
        "unknown reason",
    ];
    for (code, name) in (1..=9).chain([255]).zip(names.iter().chain(names.last())) {
        let answer = [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let dialogue: Dialogue<'_> = &[
            (b"\x05\x01\x00", b"\x05\x00"),
            (b"\x05\x01\x00\x03\x01h\x00\x50", &answer),
        ];
        let got = at_every_cut(Kind::Socks5, &target("http://h"), None, dialogue).await;
        let expected = format!("it cannot connect to h:80: {name} (code {code})");
        assert_eq!(got, Err(expected));
    }
}

#[tokio::test]
async fn what_is_not_socks5_is_told_as_such() {
    let (greeting, request): (&[u8], &[u8]) = (b"\x05\x01\x00", b"\x05\x01\x00\x03\x01h\x00\x50");
    let rows: [Dialogue<'_>; 5] = [
        &[(greeting, b"HTTP/1.1 400 Bad Request\r\n\r\n")],
        &[(greeting, b"\x04\x00")],
        &[(greeting, b"\x05\x01")],
        &[
            (greeting, b"\x05\x00"),
            (request, b"\x04\x00\x00\x01\0\0\0\0\0\0"),
        ],
        &[
            (greeting, b"\x05\x00"),
            (request, b"\x05\x00\x00\x02\0\0\0\0\0\0"),
        ],
    ];
    for dialogue in rows {
        let got = at_every_cut(Kind::Socks5, &target("http://h"), None, dialogue).await;
        assert_eq!(got, Err("its answer is not SOCKS5".to_owned()));
    }
    let long = Target {
        host: "n".repeat(256),
        ..target("http://h")
    };
    let (mut client, _proxy) = tokio::io::duplex(1024);
    let error = socks5_connect(&mut client, &long, None).await.unwrap_err();
    assert!(matches!(error, HandshakeError::NameTooLong), "{error}");
}

#[tokio::test]
async fn a_proxy_that_closes_in_the_middle_is_told_as_such() {
    let login = credential("socks5://user:pass@h");
    let to = target("http://h:1");
    let http: (&[u8], &[u8]) = (
        b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
    );
    let socks: Dialogue<'_> = &[
        (b"\x05\x01\x02", b"\x05\x02"),
        (b"\x01\x04user\x04pass", b"\x01\x00"),
        (
            b"\x05\x01\x00\x03\x01h\x00\x01",
            b"\x05\x00\x00\x03\x02ab\x00\x01",
        ),
    ];
    let rows: [(Kind, Option<&EgressCredential>, Dialogue<'_>); 2] = [
        (Kind::Http, None, &[http]),
        (Kind::Socks5, login.as_ref(), socks),
    ];
    for (kind, credential, dialogue) in rows {
        for keep in 0..lengths(dialogue) {
            let mut left = keep;
            let mut short = owned(dialogue, b"");
            short.retain_mut(|(_, answer)| {
                let reached = left > 0;
                answer.truncate(left);
                left -= answer.len();
                reached
            });
            let (client, proxy) = tokio::io::duplex(64 * 1024);
            let player = tokio::spawn(async move {
                play(proxy, short, usize::MAX).await;
            });
            let error = shake(kind, client, &to, credential).await.unwrap_err();
            let broke = matches!(&error, HandshakeError::Closed)
                || matches!(&error, HandshakeError::Io(e) if e.kind() == io::ErrorKind::BrokenPipe);
            assert!(broke, "after {keep} bytes: {error}");
            player.await.unwrap();
        }
    }
}
