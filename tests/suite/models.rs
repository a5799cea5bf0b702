//! The list of models, and one of them, in the form of whichever library asks.

use serde_json::{Value, json};
use tollgate_test_support::{ClientReply, Request};

use crate::claude::{send, setup};
use crate::harness::key_of;

/// How a library shows its key, and that it is that library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    OpenAi,
    Anthropic,
    Google,
}

const LIBRARIES: [Library; 3] = [Library::OpenAi, Library::Anthropic, Library::Google];

impl Library {
    fn asks(self, method: &str, path: &str, key: &str) -> Request {
        let request = Request::new(method, path);
        match self {
            Library::OpenAi => request.bearer(key),
            Library::Anthropic => request
                .header("x-api-key", key)
                .header("anthropic-version", "2023-06-01"),
            Library::Google => request.header("x-goog-api-key", key),
        }
    }

    /// A model of this group as the library knows it.
    fn model(self, id: &str) -> Value {
        let created_at = "2024-01-01T00:00:00Z";
        match self {
            Library::OpenAi => json!({
                "id": id, "object": "model", "created": 1_704_067_200, "owned_by": "anthropic",
                "type": "model", "display_name": id, "created_at": created_at,
            }),
            Library::Anthropic => {
                json!({ "type": "model", "id": id, "display_name": id, "created_at": created_at })
            }
            Library::Google => json!({
                "name": format!("models/{id}"), "displayName": id,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            }),
        }
    }

    /// What its error says: which one it is.
    fn error(self, reply: &ClientReply) -> String {
        let json = reply.json();
        let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
        match self {
            Library::OpenAi => text(&json["error"]["code"]),
            Library::Anthropic => {
                assert_eq!(json["type"], "error", "{json}");
                text(&json["error"]["type"])
            }
            Library::Google => {
                assert_eq!(json["error"]["code"], reply.status, "{json}");
                text(&json["error"]["status"])
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_library_gets_its_own_form() {
    let url = "http://127.0.0.1:9";
    let gateway = setup(&[("main", json!({}), &[url]), ("plain", json!({}), &[url])])
        .resources(|all| {
            all["accounts"][0]["model_mapping"] =
                json!({ "b": "x", "meta/llama:4": "x", "a": "x", "c*": "x" });
        })
        .start()
        .await;
    let key = key_of("main");
    for library in LIBRARIES {
        let ask = |path: &str| library.asks("GET", path, &key);
        let list = send(&gateway, &ask("/v1/models")).await;
        assert_eq!(list.status, 200);
        let models: Vec<Value> = ["a", "b", "meta/llama:4"]
            .map(|id| library.model(id))
            .into();
        let expected = match library {
            Library::OpenAi => json!({ "object": "list", "data": models }),
            Library::Anthropic => json!({
                "data": models, "has_more": false, "first_id": "a", "last_id": "meta/llama:4",
            }),
            Library::Google => json!({ "models": models }),
        };
        assert_eq!(list.json(), expected, "{library:?}");
        // One of them, as it is or with what libraries escape.
        for (path, id) in [
            ("/v1/models/a", "a"),
            ("/v1/models/meta/llama:4", "meta/llama:4"),
            ("/v1/models/meta%2Fllama%3A4", "meta/llama:4"),
            ("/v1/models/b/", "b"),
        ] {
            let one = send(&gateway, &ask(path)).await;
            assert_eq!((one.status, one.json()), (200, library.model(id)), "{path}");
            assert!(one.header("x-request-id").is_some());
        }
        for path in [
            "/v1/models/c",
            "/v1/models/c1",
            "/v1/models/A",
            "/v1/models/a/b",
            "/v1/models/a%",
        ] {
            let missing = send(&gateway, &ask(path)).await;
            let expected = match library {
                Library::OpenAi => "model_not_found",
                Library::Anthropic => "not_found_error",
                Library::Google => "NOT_FOUND",
            };
            assert_eq!(
                (missing.status, library.error(&missing)),
                (404, expected.to_owned()),
                "{path}"
            );
        }
        // Without mappings there are the platform's usual models.
        let usual = library.asks(
            "GET",
            "/v1/models/claude-sonnet-4-5-20250929",
            &key_of("plain"),
        );
        assert_eq!(send(&gateway, &usual).await.status, 200, "{library:?}");
        // Errors of these paths are in the same form.
        let nobody = send(&gateway, &library.asks("GET", "/v1/models", "tg-nobody")).await;
        let post = send(&gateway, &library.asks("POST", "/v1/models/a", &key)).await;
        let expected = match library {
            Library::OpenAi => ["INVALID_API_KEY", "none"],
            Library::Anthropic => ["authentication_error", "invalid_request_error"],
            Library::Google => ["UNAUTHENTICATED", "UNKNOWN"],
        };
        assert_eq!((nobody.status, post.status), (401, 405), "{library:?}");
        assert_eq!(
            [library.error(&nobody), library.error(&post)],
            expected,
            "{library:?}"
        );
        assert_eq!(post.header("allow"), Some("GET"));
    }
}
