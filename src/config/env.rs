//! The environment: `TOLLGATE_` variables laid over the file.

use std::collections::BTreeMap;

use super::keys::{self, KEYS, LIST_KEYS};
use super::mistakes::Mistake;
use super::node::Node;
use super::raw;

const PREFIX: &str = "TOLLGATE_";
/// Names the configuration file itself; the command line reads it.
const CONFIG_VARIABLE: &str = "TOLLGATE_CONFIG";
/// What clients of a Tollgate keep in their environment, perhaps the same shell's: never ours.
const CLIENT_VARIABLES: [&str; 4] = [
    "TOLLGATE_KEY",
    "TOLLGATE_API_KEY",
    "TOLLGATE_URL",
    "TOLLGATE_BASE_URL",
];

/// The environment variable of a key path: `server.h2c` is `TOLLGATE_SERVER__H2C`.
pub(super) fn variable_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

/// Lays every `TOLLGATE_` variable over `root`. An empty variable counts as not set, which is what
/// compose files and unit files make of an unset one.
pub(super) fn lay_over(
    root: &mut Node,
    env: &BTreeMap<String, String>,
    mistakes: &mut Vec<Mistake>,
) {
    let mut known: Vec<(String, String)> = KEYS
        .iter()
        .map(|key| (*key).to_string())
        .chain(sections())
        .map(|path| (variable_of(&path), path))
        .collect();
    // A section before its keys, so that the variable of a single key has the last word.
    known.sort_by_key(|(_, path)| path.matches('.').count());
    for (variable, path) in &known {
        let text = env.get(variable).map_or("", |text| text.trim());
        if text.is_empty() {
            continue;
        }
        match parse(path, text) {
            Ok(value) => put(root, variable, path, value),
            Err(mut mistake) => {
                mistake.place = variable.clone();
                mistakes.push(mistake);
            }
        }
    }
    for name in env.keys() {
        let is_ours = name.starts_with(PREFIX)
            && name != CONFIG_VARIABLE
            && !CLIENT_VARIABLES.contains(&name.as_str())
            && !known.iter().any(|(variable, _)| variable == name)
            && !is_service_link(name);
        if is_ours {
            let near = keys::nearest(name, known.iter().map(|(variable, _)| variable.as_str()));
            mistakes.push(Mistake {
                place: name.clone(),
                // Not repeated: under a misspelt name it may be a secret.
                value: None,
                problem: "unknown environment variable".into(),
                expected: match near {
                    Some(near) => format!("{near}, perhaps"),
                    None => "TOLLGATE_ and a key of the configuration, its parts joined by __, \
                             such as TOLLGATE_SERVER__LISTEN"
                        .into(),
                },
            });
        }
    }
}

/// Every section, the outer before the inner.
fn sections() -> impl Iterator<Item = String> {
    let mut sections: Vec<String> = KEYS
        .iter()
        .flat_map(|key| key.match_indices('.').map(|(at, _)| key[..at].to_string()))
        .collect();
    sections.sort();
    sections.dedup();
    sections.into_iter()
}

/// Kubernetes puts variables into every pod for each service of its namespace; those of a service
/// called `tollgate` or `tollgate-admin` begin like ours. None of our keys looks like them.
fn is_service_link(name: &str) -> bool {
    let ports = |rest: &str| {
        rest.is_empty()
            || (rest.starts_with('_') && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
    };
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name
                .match_indices("_PORT")
                .any(|(at, port)| ports(&name[at + port.len()..])))
}

fn parse(path: &str, text: &str) -> Result<Node, Mistake> {
    if text == "null" {
        return Ok(Node::Null);
    }
    let structured = keys::is_section(path) || LIST_KEYS.contains(&path);
    if !structured || !text.starts_with(['[', '{']) {
        return Ok(Node::Word(text.to_string()));
    }
    Node::from_json(text).or_else(|error| {
        // `[::1]:8080` begins like a list.
        if text.parse::<std::net::SocketAddr>().is_ok() {
            return Ok(Node::Word(text.to_string()));
        }
        Err(Mistake {
            place: String::new(),
            value: None,
            problem: format!("not valid JSON: {}", error.message),
            expected: "lists and maps as JSON".into(),
        })
    })
}

/// Puts a value at its path; the map of a section is put key by key, so that what it does not
/// name stays.
fn put(root: &mut Node, variable: &str, path: &str, value: Node) {
    match value {
        Node::Map(entries) if keys::is_section(path) => {
            for (key, value) in entries {
                put(root, variable, &format!("{path}.{key}"), value);
            }
        }
        value => raw::put(
            root,
            path,
            Node::FromEnv(variable.to_string(), Box::new(value)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(file: &str, env: &[(&str, &str)]) -> (serde_json::Value, Vec<String>) {
        let (mut documents, _) = Node::from_yaml(file);
        let env = env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let mut mistakes = Vec::new();
        lay_over(&mut documents[0], &env, &mut mistakes);
        let mistakes = mistakes.iter().map(Mistake::to_string).collect();
        (documents[0].to_json(), mistakes)
    }

    #[test]
    fn variables_win_over_the_file_and_keys_over_sections() {
        let (root, mistakes) = over(
            "gateway: {drain_timeout_ms: 1, stall_timeout_ms: 2, connect_timeout_ms: 3}",
            &[
                (
                    "TOLLGATE_GATEWAY",
                    r#"{"drain_timeout_ms": 10, "stall_timeout_ms": 20}"#,
                ),
                ("TOLLGATE_GATEWAY__STALL_TIMEOUT_MS", "200"),
                ("TOLLGATE_SERVER__LISTEN", r#"["127.0.0.1:1"]"#),
                ("TOLLGATE_SCHEDULING__WEIGHTS", r#"{"load": 0.5}"#),
                ("TOLLGATE_ADMIN__LISTEN", "[::1]:2"),
                ("TOLLGATE_ADMIN__TOKEN", "[{ is a fine token"),
                ("TOLLGATE_DATABASE__URL", "null"),
                ("TOLLGATE_TIMEZONE", ""),
                ("TOLLGATE_CONFIG", "x.yaml"),
                ("PATH", "/bin"),
            ],
        );
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(
            root,
            serde_json::json!({
                "gateway": {"drain_timeout_ms": 10, "stall_timeout_ms": "200", "connect_timeout_ms": 3},
                "server": {"listen": ["127.0.0.1:1"]},
                "scheduling": {"weights": {"load": 0.5}},
                "admin": {"listen": "[::1]:2", "token": "[{ is a fine token"},
                "database": {"url": null},
            })
        );
    }

    #[test]
    fn unknown_variables_are_named_with_the_nearest_known_one() {
        for (variable, near) in [
            ("TOLLGATE_SERVER_LISTEN", "TOLLGATE_SERVER__LISTEN, perhaps"),
            ("TOLLGATE_LOGING__LEVEL", "TOLLGATE_LOGGING__LEVEL, perhaps"),
            ("TOLLGATE_server__h2c", "TOLLGATE_SERVER__H2C, perhaps"),
            (
                "TOLLGATE_XYZZY_PLUGH_QUUX_FROBNICATE",
                "such as TOLLGATE_SERVER__LISTEN",
            ),
        ] {
            let (_, mistakes) = over("{}", &[(variable, "a-secret")]);
            assert_eq!(mistakes.len(), 1, "{variable}");
            assert!(mistakes[0].starts_with(variable), "{}", mistakes[0]);
            assert!(mistakes[0].ends_with(near), "{}", mistakes[0]);
            assert!(!mistakes[0].contains("a-secret"));
        }
    }

    #[test]
    fn what_clients_keep_in_the_same_environment_is_not_ours() {
        for variable in CLIENT_VARIABLES {
            assert!(over("{}", &[(variable, "x")]).1.is_empty(), "{variable}");
        }
    }

    #[test]
    fn bad_json_is_a_mistake() {
        let (_, mistakes) = over("{}", &[("TOLLGATE_SERVER__LISTEN", "[\"127.0.0.1:1\"")]);
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].starts_with("TOLLGATE_SERVER__LISTEN: not valid JSON"));
    }

    #[test]
    fn service_links_of_kubernetes_are_left_alone() {
        let links = [
            "TOLLGATE_SERVICE_HOST",
            "TOLLGATE_SERVICE_PORT",
            "TOLLGATE_SERVICE_PORT_HTTP",
            "TOLLGATE_PORT",
            "TOLLGATE_PORT_8080_TCP",
            "TOLLGATE_PORT_8080_TCP_ADDR",
            "TOLLGATE_ADMIN_SERVICE_HOST",
            "TOLLGATE_ADMIN_PORT_9090_TCP_PROTO",
        ];
        for link in links {
            assert_eq!(
                over("{}", &[(link, "tcp://10.0.0.1:80")]).1.len(),
                0,
                "{link}"
            );
        }
        assert_eq!(over("{}", &[("TOLLGATE_SERVER__PORT", "80")]).1.len(), 1);
        assert_eq!(over("{}", &[("TOLLGATE_PORTS", "80")]).1.len(), 1);
    }
}
