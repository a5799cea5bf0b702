use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::validate::messages::messages;

const SESSION: &str = "0f0e0d0c-1111-2222-3333-444455556666";
const ACCOUNT: &str = "a0a0a0a0-1111-2222-3333-444455556666";

fn text_form(account: &str, session: &str) -> String {
    format!(
        "user_{}_account_{account}_session_{session}",
        "ab".repeat(32)
    )
}

fn sender() -> Sender<'static> {
    Sender {
        ip: Some([192, 0, 2, 7].into()),
        user_agent: "Anthropic/Python 2.14.0",
        api_key_id: 3,
    }
}

fn key(body: &Value) -> Option<StickyKey> {
    let body = body.to_string();
    conversation(&messages(body.as_bytes()).unwrap(), &sender()).key
}

fn with(user_id: Value, system: Value, list: Value) -> Value {
    json!({"model": "m", "metadata": {"user_id": user_id}, "system": system, "messages": list})
}

fn marked(text: &str) -> Value {
    json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
}

fn plain(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn user(content: impl Into<Value>) -> Value {
    json!({"role": "user", "content": content.into()})
}

#[test]
fn both_forms_of_a_user_id() {
    let hex = "ab".repeat(32);
    let text = text_form(ACCOUNT, SESSION);
    let object =
        json!({"device_id": hex, "account_uuid": ACCOUNT, "session_id": SESSION}).to_string();
    for text in [&text, &format!(" {text}\n"), &object] {
        let id = UserId::parse(text).unwrap();
        assert_eq!(id.device_id, hex);
        assert_eq!(id.account_uuid.as_deref(), Some(ACCOUNT));
        assert_eq!(id.session_id, SESSION);
    }
    let short =
        json!({"session_id": "s", "account_uuid": "", "device_id": "d", "more": [1]}).to_string();
    for (text, session) in [(text_form("", SESSION), SESSION), (short, "s")] {
        let id = UserId::parse(&text).unwrap();
        assert_eq!(
            (id.account_uuid.as_deref(), &*id.session_id),
            (None, session)
        );
    }
}

#[test]
fn what_is_no_user_id() {
    let hex = "ab".repeat(32);
    for text in [
        "",
        "user-123",
        "user_x_account__session_",
        &text_form("", ""),
        &text_form("", &SESSION[1..]),
        &text_form("", &SESSION.replace('0', "g")),
        &text_form("nobody", SESSION),
        &text_form("", SESSION).replace("ab", "zz"),
        &text_form("", SESSION).replacen("ab", "", 1),
        &text_form("", SESSION).replace("_session_", "_"),
        "{}",
        "{",
        r#"{"device_id":"d"}"#,
        r#"{"session_id":"s"}"#,
        r#"{"device_id":"d","session_id":" "}"#,
        r#"{"device_id":"d","session_id":5}"#,
        r#"{"device_id":"d","session_id":"s"} x"#,
        &json!({"device_id": hex, "session_id": "s".repeat(LONGEST_ID + 1)}).to_string(),
    ] {
        assert_eq!(UserId::parse(text), None, "{text}");
    }
}

#[test]
fn the_first_source_that_says_something_wins() {
    let session = Some(StickyKey::of(SESSION.as_bytes()));
    let ids = [
        text_form("", SESSION),
        json!({"device_id": "d", "session_id": SESSION}).to_string(),
    ];
    for id in &ids {
        let body = with(
            json!(id),
            json!([marked("s")]),
            json!([user(vec![marked("u")])]),
        );
        assert_eq!(key(&body), session);
        let body = body.to_string();
        let request = messages(body.as_bytes()).unwrap();
        let user = conversation(&request, &sender()).user.unwrap();
        assert_eq!(user.session_id, SESSION);
    }
    // An id of one's own is none; what is marked in a message goes before what is marked in `system`.
    let own = json!("user-1");
    let system = json!([plain("a"), marked("s")]);
    let by_message = key(&with(
        own.clone(),
        system.clone(),
        json!([user(vec![marked("u")])]),
    ));
    let by_system = key(&with(own.clone(), system.clone(), json!([user("u")])));
    let by_all = key(&with(own.clone(), json!("s"), json!([user("u")])));
    let all = [by_message, by_system, by_all, session];
    for (at, key) in all.iter().enumerate() {
        assert!(key.is_some() && !all[..at].contains(key), "{at}");
    }
    let request = with(own, json!("s"), json!([user("u")])).to_string();
    let request = messages(request.as_bytes()).unwrap();
    assert_eq!(conversation(&request, &sender()).user, None);
    // Without any text there is nothing to go by.
    for list in [
        json!([]),
        json!([user("")]),
        json!([user(vec![json!({"type": "image"})])]),
        json!("u"),
    ] {
        assert_eq!(
            key(&json!({"model": "m", "messages": list})),
            None,
            "{list}"
        );
    }
    assert_eq!(key(&json!({"model": "m"})), None);
}

#[test]
fn what_is_marked_in_system_holds_through_a_conversation() {
    let system = json!([plain("today"), marked("be kind"), marked("be brief")]);
    let of = |system: Value, list: Value| key(&with(Value::Null, system, list));
    let first = of(system.clone(), json!([user("u")]));
    assert!(first.is_some());
    // Other turns, and what is not marked, change nothing.
    let later = json!([user("u"), {"role": "assistant", "content": "a"}, user(vec![plain("v")])]);
    assert_eq!(of(system.clone(), later.clone()), first);
    assert_eq!(
        of(
            json!([plain("tomorrow"), marked("be kind"), marked("be brief")]),
            later
        ),
        first
    );
    assert_ne!(
        of(
            json!([marked("be kind"), marked("be long")]),
            json!([user("u")])
        ),
        first
    );
    assert_ne!(
        of(
            json!([marked("be ki"), marked("ndbe brief")]),
            json!([user("u")])
        ),
        first
    );
}

#[test]
fn of_messages_the_first_marked_counts_with_all_its_text() {
    let of = |list: Value| key(&with(Value::Null, json!([marked("s")]), list));
    let message = |marks: &[bool], texts: &[&str]| {
        let block = |(mark, text): (&bool, &&str)| if *mark { marked(text) } else { plain(text) };
        user(marks.iter().zip(texts).map(block).collect::<Vec<_>>())
    };
    let first = of(json!([message(&[false, true], &["a", "b"])]));
    assert!(first.is_some());
    for list in [
        json!([user("x"), message(&[true, false], &["a", "b"])]),
        json!([
            message(&[true, true], &["a", "b"]),
            message(&[true], &["c"])
        ]),
        json!([{"role": "assistant", "content": [marked("a"), plain("b")]}]),
    ] {
        assert_eq!(of(list.clone()), first, "{list}");
    }
    for list in [
        json!([message(&[true], &["a"]), message(&[true], &["b"])]),
        json!([message(&[false, true], &["b", "a"])]),
        json!([message(&[false, true], &["a", "c"])]),
    ] {
        assert!(
            of(list.clone()).is_some() && of(list.clone()) != first,
            "{list}"
        );
    }
    // A mark on something without text leaves it to `system`.
    let image = json!({"type": "image", "cache_control": {"type": "ephemeral"}});
    let by_system = of(json!([user("u")]));
    assert_eq!(
        of(json!([user(vec![image]), user(vec![marked("u")])])),
        by_system
    );
    // Another kind of mark is none.
    let other = json!({"type": "text", "text": "u", "cache_control": {"type": "eternal"}});
    assert_eq!(of(json!([user(vec![other])])), by_system);
}

#[test]
fn without_marks_everything_counts() {
    let body = with(Value::Null, json!("s"), json!([user("a"), user("b")]));
    let of = |body: &Value, sender: &Sender<'_>| {
        let body = body.to_string();
        conversation(&messages(body.as_bytes()).unwrap(), sender).key
    };
    let base = of(&body, &sender());
    assert!(base.is_some());
    // Blocks or a string, another version of the same client: the same.
    let blocks = with(
        Value::Null,
        json!([plain("s")]),
        json!([user(vec![plain("a"), plain("b")])]),
    );
    assert_eq!(of(&blocks, &sender()), base);
    let updated = Sender {
        user_agent: "Anthropic/Python 3.0.0",
        ..sender()
    };
    assert_eq!(of(&body, &updated), base);
    #[rustfmt::skip]
    let different = [
        of(&with(Value::Null, json!("t"), json!([user("a"), user("b")])), &sender()),
        of(&with(Value::Null, json!("s"), json!([user("a")])), &sender()),
        of(&with(Value::Null, json!("s"), json!([user("ab")])), &sender()),
        of(&with(Value::Null, json!([plain("s"), plain("a")]), json!([user("b")])), &sender()),
        of(&body, &Sender { ip: None, ..sender() }),
        of(&body, &Sender { user_agent: "curl/8", ..sender() }),
        of(&body, &Sender { api_key_id: 4, ..sender() }),
    ];
    for (at, key) in different.iter().enumerate() {
        assert!(
            key.is_some() && *key != base && !different[..at].contains(key),
            "row {at}"
        );
    }
}

#[test]
fn user_agents_without_their_versions() {
    for (user_agent, expected) in [
        ("", ""),
        ("claude-cli/2.0.14 (external, cli)", "claude-cli"),
        ("Claude-CLI/3.1.0", "claude-cli"),
        ("Anthropic/Python 2.14.0", "anthropic"),
        (
            "Mozilla/5.0 (X11; Linux) Gecko/20100101 Firefox/140.0",
            "firefox+gecko+mozilla",
        ),
        ("b/1 a/2 b/3", "a+b"),
        ("my_tool.x/v1-rc", "my_tool.x"),
        ("curl / 8", "/+curl"),
        ("/1", "/1"),
        ("Bun 1.2.3", "bun"),
        ("tool tool", "tool"),
    ] {
        assert_eq!(normalised_user_agent(user_agent), expected, "{user_agent}");
    }
}

proptest! {
    #[test]
    fn a_version_changes_nothing(
        names in prop::collection::vec("[a-z][a-z-]{0,8}", 1..4),
        one in "[0-9]{1,3}(\\.[0-9]{1,3}){0,3}",
        other in "[0-9]{1,3}(\\.[0-9]{1,3}){0,3}",
    ) {
        let with = |version: &str| {
            let products: Vec<String> = names.iter().map(|name| format!("{name}/{version}")).collect();
            normalised_user_agent(&products.join(" "))
        };
        prop_assert_eq!(with(&one), with(&other));
    }

    #[test]
    fn any_user_id_is_survived(text in "[{}\":,_a-z0-9 -]{0,60}", id in "\\PC{0,40}") {
        let _ = (UserId::parse(&text), UserId::parse(&id));
        let body = with(json!(id), json!(text), json!([user(text.clone())]));
        prop_assert_eq!(key(&body), key(&body));
        normalised_user_agent(&id);
    }
}

#[test]
fn which_keys_hold_for_the_next_turn() {
    let id = json!(text_form("", SESSION));
    let rows = [
        (with(id, json!("s"), json!([user("a")])), true),
        (
            with(json!("me"), json!([marked("s")]), json!([user("a")])),
            true,
        ),
        (
            with(json!("me"), json!("s"), json!([user(json!([marked("a")]))])),
            true,
        ),
        (with(json!("me"), json!("s"), json!([user("a")])), false),
        (with(json!("me"), json!(""), json!([user("")])), false),
    ];
    for (body, lasts) in rows {
        let text = body.to_string();
        let request = messages(text.as_bytes()).unwrap();
        assert_eq!(conversation(&request, &sender()).lasts, lasts, "{body}");
    }
}
