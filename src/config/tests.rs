//! The configuration as a whole: what is read from where, and what every mistake looks like.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

/// An environment.
fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_string(), (*v).to_string()))
        .collect()
}

/// A folder with files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, pairs: &[(&str, &str)]) -> Result<Config, Mistakes> {
        load(Some(&self.path("t.yaml")), &env(pairs))
    }
}

/// The mistakes of a file, each without the path of the temporary folder.
fn mistakes(text: &str) -> Vec<String> {
    let folder = Folder::new(&[("t.yaml", text)]);
    let prefix = folder.path("").display().to_string();
    match folder.load(&[]) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes
            .0
            .iter()
            .map(|m| m.to_string().replace(&prefix, ""))
            .collect(),
    }
}

const CERT: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

#[test]
fn without_file_and_environment_there_are_the_defaults() {
    let config = load(None, &env(&[("HOME", "/root")])).unwrap();
    assert_eq!(config.server.listen.len(), 1);
    assert_eq!(
        config.server.listen[0].addr,
        "127.0.0.1:8080".parse().unwrap()
    );
    assert_eq!(config.admin.listen, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(
        config.data_dir,
        std::env::current_dir().unwrap().join("data")
    );
    assert!(config.server.threads > 0 && config.server.max_inflight_body_bytes > 0);
    assert_eq!(
        config.gateway.keepalive_interval,
        Some(Duration::from_secs(10))
    );
    assert_eq!((config.admin.token, config.secret), (None, None));
    assert_eq!(config.timezone, chrono_tz::Tz::UTC);
    assert_eq!(default_with("/d").data_dir, Path::new("/d"));
    assert_eq!(
        default_with("/d"),
        Config {
            data_dir: "/d".into(),
            ..load(None, &env(&[])).unwrap()
        }
    );
}

#[test]
fn the_annotated_file_is_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tollgate.yaml");
    let config = load(Some(&file), &env(&[])).unwrap_or_else(|e| panic!("{e}"));
    let data_dir = file.parent().unwrap().join("data");
    assert_eq!(config, default_with(data_dir));

    let text = std::fs::read_to_string(&file).unwrap();
    let written: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    for key in keys::KEYS {
        let pointer = format!("/{}", key.replace('.', "/"));
        assert!(written.pointer(&pointer).is_some(), "{key} is not in it");
    }
}

#[test]
fn every_key_is_read() {
    for key in keys::KEYS {
        // A list of a map is right nowhere.
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut text = String::new();
        let mut depth = 0;
        for section in sections.split('.').filter(|s| !s.is_empty()) {
            text += &format!("{}{section}:\n", "  ".repeat(depth));
            depth += 1;
        }
        text += &format!("{}{last}: [{{wrong: true}}]\n", "  ".repeat(depth));
        let found = mistakes(&text);
        assert!(!found.is_empty(), "{key} is not read");
        assert!(found[0].contains(key), "{key}: {found:?}");
    }
}

#[test]
fn a_file_is_read_over_the_defaults_and_the_environment_over_the_file() {
    let folder = Folder::new(&[(
        "t.yaml",
        "server:\n  listen: 127.0.0.1:1\n  threads: 3\n  max_inflight_body_bytes: 300000000\n\
         gateway: {keepalive_interval_ms: 0, drain_timeout_ms: 5, on_client_disconnect: abort,\n\
        \x20 user_message_queue: {mode: off, min_delay_ms: 300, wait_ms: 0}}\n\
         scheduling: {weights: {queue: 2}}\n\
         billing: {default_rate_multiplier: 1.10, mode: simple, reservation: none}\n\
         timezone: America/Argentina/Buenos_Aires\n\
         data_dir: d\nlogging:\nredis:\n  url: null\n",
    )]);
    let config = folder
        .load(&[
            ("TOLLGATE_GATEWAY__DRAIN_TIMEOUT_MS", "60000"),
            (
                "TOLLGATE_SERVER__LISTEN",
                r#"["127.0.0.1:0", "127.0.0.1:0", "localhost:7"]"#,
            ),
            ("TOLLGATE_SERVER__H2C", "true"),
            (
                "TOLLGATE_SERVER__TRUSTED_PROXIES",
                r#"["10.0.0.0/8", "::1"]"#,
            ),
            ("TOLLGATE_GATEWAY__USER_MESSAGE_QUEUE__MODE", "throttle"),
            ("TOLLGATE_SCHEDULING__WEIGHTS__LOAD", "0.25"),
            ("TOLLGATE_ADMIN__TOKEN", "1234567890123456"),
            ("TOLLGATE_LOGGING__LEVEL", "warn"),
        ])
        .unwrap();
    let listen: Vec<_> = config
        .server
        .listen
        .iter()
        .map(|l| l.addr.to_string())
        .collect();
    assert_eq!(listen, ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:7"]);
    assert!(config.server.h2c);
    assert_eq!(config.server.threads, 3);
    assert_eq!(config.server.max_inflight_body_bytes, 300_000_000);
    let proxies: Vec<_> = config
        .server
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1/128"]);
    assert_eq!(config.gateway.keepalive_interval, None);
    assert_eq!(config.gateway.drain_timeout, Duration::from_secs(60));
    assert_eq!(
        config.gateway.on_client_disconnect,
        OnClientDisconnect::Abort
    );
    let queue = MessageQueueConfig {
        mode: MessageQueueMode::Throttle,
        min_delay: Duration::from_millis(300),
        max_delay: Duration::from_millis(2000),
        wait: Duration::ZERO,
    };
    assert_eq!(config.gateway.message_queue, queue);
    let weights = config.scheduling.weights;
    assert_eq!(
        (weights.load, weights.queue, weights.error),
        (0.25, 2.0, 0.8)
    );
    assert_eq!(
        config.billing.default_rate_multiplier,
        Multiplier(1_100_000)
    );
    assert_eq!(config.billing.mode, BillingMode::Simple);
    assert_eq!(config.billing.reservation, Reservation::None);
    assert_eq!(config.admin.token.unwrap().expose(), "1234567890123456");
    assert_eq!(config.data_dir, folder.path("d"));
    assert_eq!(config.logging.level, log::LevelFilter::Warn);
    assert_eq!(config.timezone, chrono_tz::America::Argentina::Buenos_Aires);
}

#[test]
fn the_beta_policy_is_read() {
    use tollgate_filters::beta::{BetaAction, BetaPolicy, BetaRule, BetaScope};
    let read = |text: &str, pairs: &[(&str, &str)]| {
        let folder = Folder::new(&[("t.yaml", text)]);
        folder.load(pairs).unwrap().gateway.beta_policy
    };
    // Nothing said: the rules that conf/tollgate.yaml shows.
    assert_eq!(read("gateway: {}", &[]), BetaPolicy::default());
    assert_eq!(
        read("gateway: {beta_policy: null}", &[]),
        BetaPolicy::default()
    );
    assert_eq!(read("gateway: {beta_policy: []}", &[]).rules, []);
    let policy = read(
        "gateway:\n  beta_policy:\n\
        \x20   - {beta_token: a, action: block, error_message: no a here}\n\
        \x20   - {beta_token: b, action: pass, scope: oauth, models: [claude-opus-*], fallback_action: filter}\n\
        \x20   - {beta_token: b, action: filter, scope: apikey}\n",
        &[],
    );
    let rule = |token: &str, action, scope| BetaRule {
        token: token.to_owned(),
        action,
        scope,
        ..BetaRule::default()
    };
    let wanted = [
        BetaRule {
            message: Some("no a here".to_owned()),
            ..rule("a", BetaAction::Block, BetaScope::All)
        },
        BetaRule {
            models: vec!["claude-opus-*".to_owned()],
            fallback: BetaAction::Filter,
            ..rule("b", BetaAction::Pass, BetaScope::OAuth)
        },
        rule("b", BetaAction::Filter, BetaScope::ApiKey),
    ];
    assert_eq!(policy.rules, wanted);
    let variable = "TOLLGATE_GATEWAY__BETA_POLICY";
    let from_env = read(
        "",
        &[(
            variable,
            r#"[{"beta_token": "b", "action": "filter", "scope": "apikey"}]"#,
        )],
    );
    assert_eq!(from_env.rules, wanted[2..]);
    assert_eq!(read("", &[(variable, "[]")]).rules, []);
}

#[test]
fn mistakes_in_the_beta_policy_are_named() {
    for (rule, want) in [
        (
            "{action: pass}",
            "gateway.beta_policy[0]: `beta_token` is missing",
        ),
        (
            "{beta_token: a}",
            "gateway.beta_policy[0]: `action` is missing; expected pass, filter or block",
        ),
        (
            "{beta_token: 'a,b', action: pass}",
            "gateway.beta_policy[0].beta_token: not a token",
        ),
        (
            "{beta_token: '', action: pass}",
            "gateway.beta_policy[0].beta_token: not a token",
        ),
        (
            "{beta_token: 'a b', action: pass}",
            "gateway.beta_policy[0].beta_token: not a token",
        ),
        (
            "{beta_token: a, action: drop}",
            "gateway.beta_policy[0].action: no such choice",
        ),
        (
            "{beta_token: a, action: pass, scope: bedrock}",
            "gateway.beta_policy[0].scope: no such choice",
        ),
        (
            "{beta_token: a, action: pass, models: ['a*b']}",
            "gateway.beta_policy[0].models[0]: not a pattern",
        ),
        (
            "{beta_token: a, action: pass, fallback_action: block}",
            "gateway.beta_policy[0].fallback_action: without `models`",
        ),
        (
            "{beta_token: a, action: block, error_message: ' '}",
            "gateway.beta_policy[0].error_message: empty",
        ),
        (
            "{beta_token: a, action: pass, model: [x]}",
            "gateway.beta_policy[0].model: unknown key; expected `models`",
        ),
        ("a", "gateway.beta_policy[0]: not a map"),
    ] {
        let found = mistakes(&format!("gateway: {{beta_policy: [{rule}]}}"));
        assert!(found.iter().any(|m| m.contains(want)), "{rule}: {found:?}");
    }
    let found = mistakes("gateway: {beta_policy: filter}");
    assert!(
        found[0].contains("gateway.beta_policy: not a list"),
        "{found:?}"
    );
}

#[test]
fn seven_mistakes_are_seven_lines() {
    let text = "\
server:
  listen: [\"127.0.0.1\"]
  threads: many
  h2cc: true
gateway:
  connect_timeout_ms: 0
billing:
  mode: standart
security:
  secret: short
timezone: Mars
";
    assert_eq!(
        mistakes(text),
        [
            "t.yaml:2:12 server.listen[0]: an address without a port, found `127.0.0.1`; expected \
             an IP address and a port, such as 127.0.0.1:8080 or [::]:8080",
            "t.yaml:3:12 server.threads: not a whole number, found `many`; expected 0 (all cores) to 1024",
            "t.yaml:4:3 server.h2cc: unknown key; expected `h2c`, perhaps (known here: listen, h2c, \
             threads, max_body_bytes, max_inflight_body_bytes, trusted_proxies)",
            "t.yaml:6:23 gateway.connect_timeout_ms: out of bounds, found `0`; expected 1 to \
             86400000 milliseconds (a day)",
            "t.yaml:8:9 billing.mode: no such choice, found `standart`; expected standard, \
             perhaps; one of standard, simple",
            "t.yaml:10:11 security.secret: too short; expected at least 16 characters, \
             `${ENV_NAME}` or `file:/path`",
            "t.yaml:11:11 timezone: not a time zone, found `Mars`; expected UTC, or a name of the \
             time zone database such as Europe/Berlin",
        ]
    );
}

#[test]
fn every_mistake_is_named() {
    let mut failures = Vec::new();
    for (text, want) in [
        // The file.
        ("server: [", "t.yaml:2:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "t.yaml: holds 2 YAML documents"),
        ("- a\n", "t.yaml:1:1: not a map, found `a list of 1`"),
        (
            "server: !x {}",
            "t.yaml:1:9: not valid YAML: server: YAML tags",
        ),
        // Keys.
        (
            "listen: x",
            "t.yaml:1:1 listen: unknown key; expected `server.listen` or `admin.listen`",
        ),
        (
            "zebra: x",
            "t.yaml:1:1 zebra: unknown key; expected another (known here: server, ",
        ),
        ("'a b': x", "t.yaml:1:1 \"a b\": unknown key"),
        (
            "timezone: UTC\ntimezone: UTC",
            "t.yaml:2:1 timezone: this key is written twice",
        ),
        (
            "server: 5",
            "server: not a map, found `5`; expected a map with some of the keys listen,",
        ),
        // Listeners.
        (
            "server: {listen: []}",
            "server.listen: nothing to listen on",
        ),
        ("server: {listen: }", "server.listen: nothing to listen on"),
        (
            "server: {listen: 8080}",
            "server.listen: not a list, found `8080`",
        ),
        (
            "server: {listen: [8080]}",
            "server.listen[0]: not an address, found `8080`",
        ),
        (
            "server: {listen: [':80']}",
            "a port without an address, found `:80`; expected 127.0.0.1:80, or 0.0.0.0:80",
        ),
        (
            "server: {listen: ['example.com:80']}",
            "host names are not looked up",
        ),
        ("server: {listen: ['1.1.1.1:70000']}", "not an address"),
        (
            "server: {listen: ['0.0.0.0:1', '127.0.0.1:1']}",
            "t.yaml:1:32 server.listen[1]: 0.0.0.0:1 and 127.0.0.1:1 collide",
        ),
        (
            "server: {listen: [{addr: '127.0.0.1:1', crt: x}]}",
            "server.listen[0].crt: unknown key; expected `cert`",
        ),
        (
            "server: {listen: [{cert: x.pem, key: x.pem}]}",
            "server.listen[0]: `addr` is missing",
        ),
        (
            "server: {listen: [{addr: '127.0.0.1:1', cert: c.pem}]}",
            "`cert` without `key`",
        ),
        (
            "server: {listen: [{addr: '127.0.0.1:1', key: c.pem}]}",
            "`key` without `cert`",
        ),
        (
            "admin: {listen: '127.0.0.1:8080'}",
            "t.yaml:1:17 admin.listen: server.listen (127.0.0.1:8080) and admin.listen (127.0.0.1:8080) collide",
        ),
        (
            "server: {listen: '0.0.0.0:9090'}",
            "t.yaml:1:18 server.listen: server.listen (0.0.0.0:9090) and admin.listen (127.0.0.1:9090) collide",
        ),
        // Server.
        (
            "server: {h2c: 'yes'}",
            "server.h2c: not a flag, found `yes`; expected true or false",
        ),
        ("server: {threads: 1025}", "server.threads: out of bounds"),
        (
            "server: {threads: '4'}",
            "server.threads: not a whole number",
        ),
        (
            "server: {threads: 1.5}",
            "server.threads: not a whole number, found `1.5`",
        ),
        (
            "server: {threads: }",
            "server.threads: not a whole number, found `null`",
        ),
        (
            "server: {max_body_bytes: 0}",
            "server.max_body_bytes: out of bounds",
        ),
        (
            "server: {max_body_bytes: 99999999999}",
            "server.max_body_bytes: out of bounds",
        ),
        (
            "server: {max_inflight_body_bytes: 1000}",
            "smaller than max_body_bytes (268435456)",
        ),
        (
            "server: {trusted_proxies: [10.0.0.0/33]}",
            "server.trusted_proxies[0]: not a network, found `10.0.0.0/33`",
        ),
        // Secrets and what this version does not have.
        ("admin: {token: tooshort}", "admin.token: too short"),
        ("admin: {token: ''}", "admin.token: empty"),
        (
            "admin: {token: '${NOT_SET}'}",
            "admin.token: environment variable NOT_SET is not set",
        ),
        (
            "admin: {token: 'x${NOT_SET}'}",
            "admin.token: `${` inside a secret",
        ),
        (
            "admin: {token: 'file:/nowhere/x'}",
            "admin.token: /nowhere/x cannot be read: No such file",
        ),
        ("admin: {token: [a]}", "admin.token: not a text"),
        (
            "admin: {token: true}",
            "admin.token: YAML reads this as a flag",
        ),
        (
            "database: {url: 'postgres://u:hunter2@h/d'}",
            "database.url: PostgreSQL is not supported by this version; expected null, which stands for SQLite in data_dir",
        ),
        (
            "database: {url: 'sqlite:x.db'}",
            "database.url: the SQLite file is always the one in data_dir",
        ),
        (
            "redis: {url: 'redis://:hunter2@h'}",
            "redis.url: Redis is not supported by this version",
        ),
        // Durations, counts, choices.
        (
            "gateway: {max_account_switches: -1}",
            "gateway.max_account_switches: out of bounds",
        ),
        (
            "gateway: {stall_timeout_ms: -5}",
            "gateway.stall_timeout_ms: out of bounds",
        ),
        (
            "gateway: {drain_timeout_ms: 10s}",
            "gateway.drain_timeout_ms: not a whole number, found `10s`",
        ),
        (
            "gateway: {keepalive_interval_ms: 99}",
            "expected 0 (off), or 100 to 60000",
        ),
        (
            "gateway: {keepalive_interval_ms: 60001}",
            "expected 0 (off), or 100 to 60000",
        ),
        (
            "gateway: {on_client_disconnect: drian}",
            "no such choice, found `drian`; expected drain, perhaps",
        ),
        (
            "gateway: {user_message_queue: {mode: serialise}}",
            "gateway.user_message_queue.mode: no such choice, found `serialise`; expected serialize, perhaps",
        ),
        (
            "gateway: {user_message_queue: {min_delay_ms: 60001, max_delay_ms: 60001}}",
            "gateway.user_message_queue.min_delay_ms: out of bounds",
        ),
        (
            "gateway: {user_message_queue: {min_delay_ms: 2001}}",
            "gateway.user_message_queue.min_delay_ms: min_delay_ms is longer than max_delay_ms",
        ),
        (
            "gateway: {user_message_queue: {max_delay_ms: 199}}",
            "gateway.user_message_queue.max_delay_ms: min_delay_ms is longer than max_delay_ms",
        ),
        (
            "concurrency: {ping_interval_ms: 99}",
            "concurrency.ping_interval_ms: out of bounds",
        ),
        (
            "concurrency: {user_wait_ms: -1}",
            "concurrency.user_wait_ms: out of bounds",
        ),
        ("scheduling: {top_k: 0}", "scheduling.top_k: out of bounds"),
        (
            "scheduling: {sticky_ttl_s: 0}",
            "scheduling.sticky_ttl_s: out of bounds",
        ),
        (
            "scheduling: {weights: {load: -0.1}}",
            "scheduling.weights.load: not a number within bounds",
        ),
        (
            "scheduling: {weights: {load: .nan}}",
            "scheduling.weights.load: not a number within bounds",
        ),
        (
            "scheduling: {weights: {speed: 1}}",
            "scheduling.weights.speed: unknown key",
        ),
        (
            "logging: {level: inf0}",
            "logging.level: no such choice, found `inf0`; expected info, perhaps",
        ),
        ("logging: {format: xml}", "expected one of text, json"),
        // Money, paths, time zone.
        (
            "billing: {default_rate_multiplier: -1}",
            "must not be negative, found `-1`",
        ),
        (
            "billing: {default_rate_multiplier: 1.0000001}",
            "more than 6 digits after the decimal point, found `1.0000001`",
        ),
        (
            "billing: {default_rate_multiplier: [1]}",
            "not a decimal number, found `a list of 1`",
        ),
        (
            "billing: {prices: nowhere.json}",
            "nowhere.json cannot be read",
        ),
        ("billing: {prices: .}", "is not a file"),
        ("data_dir: t.yaml", "is not a directory"),
        ("data_dir: ''", "data_dir: empty"),
        ("timezone: Europe/", "timezone: not a time zone"),
        ("timezone: 'Europe/Ber lin'", "timezone: not a time zone"),
    ] {
        let found = mistakes(text);
        let fine = found.iter().any(|line| line.contains(want))
            && found
                .iter()
                .all(|line| !line.contains("hunter2") && !line.contains('\n'));
        if !fine {
            failures.push(format!("{text}\n  wanted: {want}\n  found: {found:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn mistakes_of_the_environment_name_the_variable() {
    let folder = Folder::new(&[("t.yaml", "server: {threads: many}")]);
    let error = folder
        .load(&[
            ("TOLLGATE_GATEWAY__STALL_TIMEOUT_MS", "soon"),
            ("TOLLGATE_SERVER__LISTEN", r#"["127.0.0.1:1", "x:y"]"#),
            ("TOLLGATE_ADMIN", r#"{"tokn": "hunter2"}"#),
            ("TOLLGATE_SERVER__THREDS", "2"),
        ])
        .unwrap_err();
    let lines: Vec<String> = error.0.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 5, "{error}");
    for want in [
        "TOLLGATE_SERVER__THREDS: unknown environment variable; expected TOLLGATE_SERVER__THREADS, perhaps",
        "server.threads: not a whole number, found `many`",
        "TOLLGATE_GATEWAY__STALL_TIMEOUT_MS: not a whole number, found `soon`",
        "TOLLGATE_SERVER__LISTEN server.listen[1]: host names are not looked up, found `x:y`",
        "TOLLGATE_ADMIN admin.tokn: unknown key; expected `token`, perhaps",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(want)),
            "{want}\n{error}"
        );
    }
    assert!(!error.to_string().contains("hunter2"));
}

#[test]
fn a_file_that_is_not_there_is_one_mistake_among_others() {
    let error = load(
        Some(Path::new("/nowhere/t.yaml")),
        &env(&[("TOLLGATE_TIMEZONE", "x")]),
    )
    .unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(
        error
            .to_string()
            .starts_with("/nowhere/t.yaml: cannot be read: No such file")
    );
}

#[test]
fn secrets_come_from_the_environment_and_from_files() {
    let folder = Folder::new(&[
        (
            "t.yaml",
            "admin: {token: '${TOKEN}'}\nsecurity: {secret: 'file:secret.txt'}\n",
        ),
        ("secret.txt", "0123456789abcdef-from-file\r\n"),
    ]);
    let config = folder.load(&[("TOKEN", "0123456789abcdef")]).unwrap();
    assert_eq!(config.admin.token.unwrap().expose(), "0123456789abcdef");
    assert_eq!(
        config.secret.unwrap().expose(),
        "0123456789abcdef-from-file"
    );

    std::fs::write(folder.path("secret.txt"), "x".repeat(70_000)).unwrap();
    let error = folder.load(&[("TOKEN", "short")]).unwrap_err();
    assert!(error.0[0].problem.contains("too short"), "{error}");
    assert!(
        error.0[1].problem.contains("larger than a secret"),
        "{error}"
    );
}

#[test]
fn tls_files_are_looked_into() {
    let listen = "server: {listen: [{addr: '127.0.0.1:1', cert: c.pem, key: k.pem}]}";
    for (cert, key, want) in [
        (CERT, KEY, None),
        (
            KEY,
            KEY,
            Some("cert: holds a private key, not what is needed"),
        ),
        (
            CERT,
            CERT,
            Some("key: holds a certificate, not what is needed"),
        ),
        ("nothing", KEY, Some("cert: holds nothing in PEM")),
    ] {
        let folder = Folder::new(&[("t.yaml", listen), ("c.pem", cert), ("k.pem", key)]);
        match (folder.load(&[]), want) {
            (Ok(config), None) => {
                let tls = config.server.listen[0].tls.clone().unwrap();
                assert_eq!(
                    (tls.cert, tls.key),
                    (folder.path("c.pem"), folder.path("k.pem"))
                );
            }
            (Err(error), Some(want)) => {
                assert_eq!(error.0.len(), 1, "{error}");
                assert!(error.to_string().contains(want), "{error}");
            }
            (other, want) => panic!("{other:?} instead of {want:?}"),
        }
    }
    assert!(mistakes(listen)[0].contains("c.pem cannot be read: No such file"));
}

#[test]
fn a_price_map_is_found_beside_the_file() {
    let folder = Folder::new(&[("t.yaml", "billing: {prices: p.json}"), ("p.json", "{}")]);
    assert_eq!(
        folder.load(&[]).unwrap().billing.prices,
        Some(folder.path("p.json"))
    );
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "{}", "server:\ngateway:\n"] {
        let folder = Folder::new(&[("t.yaml", text)]);
        assert_eq!(
            folder.load(&[]).unwrap(),
            default_with(folder.path("data")),
            "{text}"
        );
    }
}
