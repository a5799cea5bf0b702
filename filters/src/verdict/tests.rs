//! A row for each line of SPEC 7.1, 7.5, 7.6, 7.8, 7.9 and 15.3.

use http::HeaderValue;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW_S: u64 = 1_780_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn minutes(minutes: u64) -> Duration {
    s(minutes * 60)
}

type Pairs<'a> = &'a [(&'static str, &'a str)];

fn headers(pairs: Pairs<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn judge(shape: Shape, credential: CredentialKind, policy: &ErrorPolicy) -> Judge<'_> {
    Judge {
        shape,
        credential,
        policy,
        cooldowns: Cooldowns::default(),
        echoed: &[],
    }
}

fn read(judge: &Judge<'_>, status: u16, headers: &HeaderMap, body: &str) -> Reading {
    judge.refusal(&Refusal {
        status,
        headers,
        body: body.as_bytes(),
        now: now(),
    })
}

use CredentialKind::{ApiKey, OAuth};
use Shape::{Anthropic, OpenAi};

/// By the table alone.
fn plain(shape: Shape, credential: CredentialKind, status: u16, body: &str) -> Reading {
    let policy = ErrorPolicy::default();
    read(
        &judge(shape, credential, &policy),
        status,
        &HeaderMap::new(),
        body,
    )
}

fn error(message: &str) -> Effect {
    Effect::Error {
        message: message.to_owned(),
    }
}

/// The body of a 403 that comes of a decision.
const FORBIDDEN: &str = r#"{"error":{"message":"m"}}"#;

fn strike(message: &str) -> Effect {
    Effect::Strike(Strike {
        window: minutes(180),
        limit: 3,
        lasts: minutes(10),
        message: message.to_owned(),
    })
}

fn refused_token(message: &str) -> Effect {
    Effect::TempUnschedulable {
        lasts: minutes(10),
        reason: message.to_owned(),
    }
}

const fn rate_limited(seconds: u64, source: LimitSource) -> Effect {
    Effect::RateLimited {
        lasts: s(seconds),
        source,
        scope: LimitScope::Account,
    }
}

#[test]
fn every_status() {
    use Verdict::*;
    let limited = Limited { retry_after: None };
    #[rustfmt::skip]
    let rows: [(&[u16], Verdict); 6] = [
        (&[100, 101, 103, 200, 201, 202, 204, 299], Fine),
        (&[400, 404, 405, 406, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 422, 424, 426, 428, 431, 451, 499], ClientFault),
        (&[401, 402, 403], BadCredential),
        (&[429], limited),
        (&[529], Overloaded),
        (&[0, 99, 300, 301, 302, 304, 307, 308, 399, 407, 408, 421, 425, 500, 501, 502, 503, 504, 520, 524, 528, 530, 599, 600, 999], Failed),
    ];
    for (statuses, verdict) in rows {
        for &status in statuses {
            for shape in [OpenAi, Anthropic] {
                for credential in [ApiKey, OAuth] {
                    let reading = plain(shape, credential, status, "");
                    assert_eq!(reading.verdict, verdict, "{status}");
                    assert!(!reading.retry_same);
                    match verdict {
                        Fine | ClientFault => assert_eq!(reading.effect, Effect::None, "{status}"),
                        Failed => assert_eq!(reading.effect, Effect::Failing, "{status}"),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn what_fails_over_and_under_which_name() {
    let rows = [
        (Verdict::Fine, false, "fine"),
        (Verdict::ClientFault, false, "client_fault"),
        (Verdict::Unlisted, false, "unlisted"),
        (Verdict::BadCredential, true, "bad_credential"),
        (Verdict::Limited { retry_after: None }, true, "limited"),
        (Verdict::Overloaded, true, "overloaded"),
        (Verdict::Failed, true, "failed"),
    ];
    for (verdict, fails_over, label) in rows {
        assert_eq!(verdict.fails_over(), fails_over, "{label}");
        assert_eq!(verdict.label(), label);
    }
}

/// SPEC 7.6, rows 401, 402, 403 and 529.
#[test]
fn what_each_status_does_to_the_account() {
    let code = |code: &str| json!({"error": {"message": "m", "code": code}}).to_string();
    let detail = json!({"detail": "Unauthorized"}).to_string();
    let other_detail = json!({"detail": "unauthorized client"}).to_string();
    let model = json!({"error": {
        "message": "Project `proj_x` does not have access to model `gpt-4o`",
        "type": "invalid_request_error", "code": "model_not_found",
    }});
    let model = model.to_string();
    let workspace = json!({"detail": {"code": "deactivated_workspace"}}).to_string();
    #[rustfmt::skip]
    let rows = [
        // 401.
        (OpenAi, ApiKey, 401, String::new(), error("Authentication failed (401)")),
        (OpenAi, ApiKey, 401, code("invalid_api_key"), error("Authentication failed (401): m")),
        (OpenAi, ApiKey, 401, detail.clone(), error("Unauthorized (401): Unauthorized")),
        (OpenAi, OAuth, 401, String::new(), refused_token("Token refused (401)")),
        (OpenAi, OAuth, 401, code("token_expired"), refused_token("Token refused (401): m")),
        (OpenAi, OAuth, 401, other_detail, refused_token("Token refused (401): unauthorized client")),
        (OpenAi, OAuth, 401, code("token_invalidated"), error("Token revoked (401): m")),
        (OpenAi, OAuth, 401, code("token_revoked"), error("Token revoked (401): m")),
        (OpenAi, OAuth, 401, detail.clone(), error("Unauthorized (401): Unauthorized")),
        (Anthropic, ApiKey, 401, String::new(), error("Authentication failed (401)")),
        (Anthropic, OAuth, 401, code("token_revoked"), refused_token("Token refused (401): m")),
        (Anthropic, OAuth, 401, detail, refused_token("Token refused (401): Unauthorized")),
        // 402.
        (OpenAi, ApiKey, 402, String::new(), error("Payment required (402)")),
        (OpenAi, OAuth, 402, workspace, error("Workspace deactivated (402)")),
        (Anthropic, ApiKey, 402, code("x"), error("Payment required (402): m")),
        // 403, SPEC 15.3.
        (OpenAi, ApiKey, 403, code("x"), strike("Access forbidden (403): m")),
        (OpenAi, OAuth, 403, json!({"error": {"type": "x"}}).to_string(), strike("Access forbidden (403)")),
        (OpenAi, OAuth, 403, json!({"detail": "m"}).to_string(), strike("Access forbidden (403): m")),
        (Anthropic, ApiKey, 403, code("x"), error("Access forbidden (403): m")),
        // A model that the project lacks.
        (OpenAi, ApiKey, 403, model.clone(), Effect::None),
        (OpenAi, OAuth, 403, code("model_not_found"), Effect::None),
        (OpenAi, ApiKey, 403, json!({"error": {"type": "Model_Not_Found"}}).to_string(), Effect::None),
        (Anthropic, ApiKey, 403, model, Effect::None),
        // A firewall.
        (OpenAi, ApiKey, 403, "<html>model_not_found</html>".into(), Effect::Failing),
        (OpenAi, OAuth, 403, String::new(), Effect::Failing),
        (OpenAi, ApiKey, 403, "{}".into(), Effect::Failing),
        (OpenAi, ApiKey, 403, r#"{"error":{"message":"cut"#.into(), Effect::Failing),
        (OpenAi, ApiKey, 403, r#""Forbidden""#.into(), Effect::Failing),
        (Anthropic, OAuth, 403, "<html>".into(), Effect::Failing),
        (Anthropic, ApiKey, 403, String::new(), Effect::Failing),
        // 529.
        (OpenAi, ApiKey, 529, String::new(), Effect::Overloaded { lasts: minutes(10) }),
        (Anthropic, OAuth, 529, String::new(), Effect::Overloaded { lasts: minutes(10) }),
    ];
    for (shape, credential, status, body, effect) in rows {
        let reading = plain(shape, credential, status, &body);
        assert_eq!(
            reading.effect, effect,
            "{shape:?} {credential:?} {status} {body}"
        );
        assert!(reading.verdict.fails_over());
    }
}

#[test]
fn messages_are_bounded_and_without_secrets() {
    let body =
        json!({"error": {"message": format!("sk-abcdef123 {}", "x".repeat(5_000))}}).to_string();
    for status in [401, 402, 403] {
        let effect = plain(OpenAi, ApiKey, status, &body).effect;
        let (Effect::Error { message } | Effect::Strike(Strike { message, .. })) = effect else {
            panic!("{status}: {effect:?}")
        };
        assert!(message.contains("): sk-*** xxx"), "{message}");
        assert!(
            message.chars().count() == LONGEST_REASON,
            "{}",
            message.chars().count()
        );
    }
}

/// SPEC 15.3.
#[test]
fn strikes() {
    let Effect::Strike(strike) = plain(OpenAi, OAuth, 403, FORBIDDEN).effect else {
        panic!("no strike")
    };
    let message = "Access forbidden (403): m";
    for (count, effect) in [
        (1, refused_token(message)),
        (2, refused_token(message)),
        (3, error(message)),
        (4, error(message)),
    ] {
        assert_eq!(strike.clone().effect(count), effect, "{count}");
    }
}

/// SPEC 7.1 and 7.6, row 400.
#[test]
fn the_texts_of_a_400() {
    use Verdict::{BadCredential, ClientFault, Failed};
    let json = |message: &str| json!({"error": {"message": message}}).to_string();
    let transient = "An error occurred while processing your request. You can retry your request, \
                     or contact us through our help center at help.openai.com if the error persists. \
                     Please include the request ID req_1 in your message.";
    #[rustfmt::skip]
    let rows = [
        (json(transient), Failed),
        (json(&transient.to_uppercase()), Failed),
        (transient.to_owned(), Failed),
        (json("An error occurred while processing this request."), Failed),
        (json("Error while processing the request"), Failed),
        (json("We couldn't do it: error while processing the request"), Failed),
        (json("Please retry, or visit help.openai.com with your request ID"), Failed),
        (json!({"message": transient}).to_string(), Failed),
        (json!({"error": transient}).to_string(), Failed),
        (json("This organization has been disabled."), BadCredential),
        (json("Your organization has been disabled"), BadCredential),
        (json("Your ORGANIZATION has been disabled"), BadCredential),
        ("Your organization has been disabled".to_owned(), BadCredential),
        (json("Identity verification is required to use this model"), BadCredential),
        // Not enough of it.
        (json("The image could not be read while processing your request"), ClientFault),
        (json("Please retry with your request ID"), ClientFault),
        (json("See help.openai.com"), ClientFault),
        (json("Your credit balance is too low"), ClientFault),
        (json("Unsupported parameter"), ClientFault),
        (json(""), ClientFault),
        (String::new(), ClientFault),
        ("{}".to_owned(), ClientFault),
        ("null".to_owned(), ClientFault),
        // The client's own words, repeated to it.
        (json(&format!("Invalid value: '{transient}'")), ClientFault),
        (json(&format!("Invalid value: \"{transient}\"")), ClientFault),
        (json("Unknown model `organization has been disabled`"), ClientFault),
        (json("Unrecognized request argument supplied: organization has been disabled"), ClientFault),
        (json!({"error": {"message": "no", "param": transient}}).to_string(), ClientFault),
        // An object that is cut short could hide what is quoted and what is not.
        (json(transient)[..200].to_owned(), ClientFault),
    ];
    for (body, verdict) in rows {
        let reading = plain(OpenAi, ApiKey, 400, &body);
        assert_eq!(reading.verdict, verdict, "{body}");
        match verdict {
            BadCredential => assert!(matches!(reading.effect, Effect::Error { .. }), "{body}"),
            _ => assert_eq!(reading.effect, Effect::None, "{body}"),
        }
    }
    // Nowhere else does the text matter.
    assert_eq!(
        plain(OpenAi, ApiKey, 404, &json(transient)).verdict,
        ClientFault
    );
    assert_eq!(
        plain(OpenAi, ApiKey, 422, &json(transient)).verdict,
        ClientFault
    );
    // Anthropic's.
    #[rustfmt::skip]
    let rows = [
        ("Your credit balance is too low to access the Anthropic API.", Some("Credit balance exhausted (400)")),
        ("This organization has been disabled.", Some("Organization disabled (400)")),
        ("Identity verification is required", Some("Identity verification required (400)")),
        ("credit balance: Extra inputs are not permitted", None),
        ("messages.0: unexpected `credit balance`", None),
        (transient, None),
        ("max_tokens: must be greater than 0", None),
    ];
    for (message, what) in rows {
        let reading = plain(Anthropic, OAuth, 400, &json(message));
        let (verdict, effect) = match what {
            Some(what) => (BadCredential, error(&format!("{what}: {message}"))),
            None => (ClientFault, Effect::None),
        };
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect),
            "{message}"
        );
    }
}

/// SPEC 7.8, Change 11: OpenAI.
#[test]
fn how_long_openai_limits() {
    use LimitSource::*;
    const P_USED: &str = "x-codex-primary-used-percent";
    const P_MIN: &str = "x-codex-primary-window-minutes";
    const P_RESET: &str = "x-codex-primary-reset-after-seconds";
    const S_USED: &str = "x-codex-secondary-used-percent";
    const S_MIN: &str = "x-codex-secondary-window-minutes";
    const S_RESET: &str = "x-codex-secondary-reset-after-seconds";
    let at = (NOW_S + 500).to_string();
    let past = (NOW_S - 1).to_string();
    let body =
        json!({"error": {"type": "usage_limit_reached", "resets_in_seconds": 77}}).to_string();
    #[rustfmt::skip]
    let rows: &[(Pairs<'_>, &str, u64, LimitSource)] = &[
        // Appendix C.
        (&[(P_MIN, "10080"), (P_USED, "40"), (P_RESET, "300000"), (S_MIN, "300"), (S_USED, "100"), (S_RESET, "600")], "", 600, CodexFiveHours),
        // Which is which: the smaller is the short one ...
        (&[(P_MIN, "300"), (P_USED, "100"), (P_RESET, "600"), (S_MIN, "10080"), (S_USED, "40"), (S_RESET, "300000")], "", 600, CodexFiveHours),
        // ... one alone by its length ...
        (&[(P_MIN, "360"), (P_USED, "100"), (P_RESET, "600")], "", 600, CodexFiveHours),
        (&[(P_MIN, "361"), (P_USED, "100"), (P_RESET, "600")], "", 600, CodexSevenDays),
        (&[(S_MIN, "360"), (S_USED, "100"), (S_RESET, "600")], "", 600, CodexFiveHours),
        (&[(S_MIN, "361"), (S_USED, "100"), (S_RESET, "600")], "", 600, CodexSevenDays),
        // ... and without lengths the first is the long one.
        (&[(P_USED, "100"), (P_RESET, "600")], "", 600, CodexSevenDays),
        (&[(S_USED, "100"), (S_RESET, "600")], "", 600, CodexFiveHours),
        // Both used up: the long one.
        (&[(P_MIN, "300"), (P_USED, "100"), (P_RESET, "600"), (S_MIN, "10080"), (S_USED, "100"), (S_RESET, "500")], "", 500, CodexSevenDays),
        (&[(P_USED, "120.5"), (P_RESET, "600"), (S_USED, "100"), (S_RESET, "700")], "", 600, CodexSevenDays),
        // Neither: the later reset.
        (&[(P_USED, "99.9"), (P_RESET, "600"), (S_USED, "0"), (S_RESET, "700")], "", 700, CodexLater),
        (&[(P_USED, "99.9"), (P_RESET, "800"), (S_RESET, "700")], "", 800, CodexLater),
        // Used up without a reset: what else is known.
        (&[(P_USED, "100"), (S_USED, "100"), (S_RESET, "700")], "", 700, CodexFiveHours),
        (&[(P_USED, "100"), (P_RESET, "0"), ("retry-after", "9")], "", 9, RetryAfter),
        (&[(P_USED, "100"), (P_RESET, "soon"), ("retry-after", "9")], &body, 77, Body),
        (&[(P_USED, "100")], "", 30, Setting),
        // The moment in place of the distance.
        (&[(P_USED, "100"), ("x-codex-primary-reset-at", &at)], "", 500, CodexSevenDays),
        (&[(P_USED, "100"), ("x-codex-primary-reset-at", &past)], "", 30, Setting),
        // Headers before the body before retry-after before the setting.
        (&[(P_USED, "100"), (P_RESET, "600"), ("retry-after", "9")], &body, 600, CodexSevenDays),
        (&[("retry-after", "9")], &body, 77, Body),
        (&[("retry-after", "9")], "", 9, RetryAfter),
        (&[("retry-after-ms", "2000"), ("retry-after", "9")], "", 2, RetryAfter),
        (&[], "", 30, Setting),
        (&[("retry-after", "soon")], "{}", 30, Setting),
    ];
    let policy = ErrorPolicy::default();
    for (pairs, body, seconds, source) in rows {
        for credential in [ApiKey, OAuth] {
            let reading = read(
                &judge(OpenAi, credential, &policy),
                429,
                &headers(pairs),
                body,
            );
            assert_eq!(
                reading.effect,
                rate_limited(*seconds, *source),
                "{pairs:?} {body}"
            );
            let retry_after = (*source != Setting).then(|| s(*seconds));
            assert_eq!(
                reading.verdict,
                Verdict::Limited { retry_after },
                "{pairs:?} {body}"
            );
        }
    }
    // "At once" is no limit.
    let reading = read(
        &judge(OpenAi, ApiKey, &policy),
        429,
        &headers(&[("retry-after", "0")]),
        "",
    );
    assert_eq!(reading.effect, Effect::None);
    assert_eq!(
        reading.verdict,
        Verdict::Limited {
            retry_after: Some(s(0))
        }
    );
}

#[test]
fn a_request_above_the_limit_is_its_own_fault() {
    let policy = ErrorPolicy::default();
    let too_large = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 61337.";
    let pairs = headers(&[("retry-after", "9")]);
    let at_9 = || rate_limited(9, LimitSource::RetryAfter);
    #[rustfmt::skip]
    let rows = [
        (OpenAi, "rate_limit_exceeded", too_large, Effect::None),
        (OpenAi, "rate_limit_exceeded", "request too large for gpt-4o", Effect::None),
        (OpenAi, "other", too_large, at_9()),
        (OpenAi, "rate_limit_exceeded", "Limit reached: Request too large for gpt-4o", at_9()),
        (Anthropic, "rate_limit_exceeded", too_large, at_9()),
    ];
    for (shape, code, message, effect) in rows {
        let judge = judge(shape, ApiKey, &policy);
        let retry_after = (effect != Effect::None).then(|| s(9));
        let verdict = Verdict::Limited { retry_after };
        let body = json!({"error": {"type": "tokens", "code": code, "message": message}});
        let reading = read(&judge, 429, &pairs, &body.to_string());
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect.clone()),
            "{message}"
        );
        if code == "rate_limit_exceeded" {
            let failure = failure("tokens", code, message);
            let reading = judge.stream_failure(&failure, &pairs, now());
            assert_eq!(
                (reading.verdict, reading.effect),
                (verdict, effect),
                "{message}"
            );
        }
    }
}

#[test]
fn limits_of_one_model() {
    let policy = ErrorPolicy::default();
    let body = |code: &str, message: &str| {
        json!({"error": {"type": "requests", "code": code, "message": message}}).to_string()
    };
    let of_model =
        "Rate limit reached for gpt-5 in organization org-x on requests per min (RPM): Limit 3";
    #[rustfmt::skip]
    let rows = [
        (OpenAi, ApiKey, body("rate_limit_exceeded", of_model), &[][..], LimitScope::Model),
        (OpenAi, ApiKey, body("rate_limit_exceeded", of_model), &[("retry-after", "9")], LimitScope::Model),
        (OpenAi, OAuth, body("rate_limit_exceeded", of_model), &[], LimitScope::Account),
        (OpenAi, ApiKey, body("insufficient_quota", of_model), &[], LimitScope::Account),
        (OpenAi, ApiKey, body("rate_limit_exceeded", "Too many"), &[], LimitScope::Account),
        (OpenAi, ApiKey, body("rate_limit_exceeded", of_model), &[("x-codex-primary-reset-after-seconds", "9")], LimitScope::Account),
        (Anthropic, ApiKey, body("rate_limit_exceeded", of_model), &[("retry-after", "9")], LimitScope::Account),
    ];
    for (shape, credential, body, pairs, expected) in rows {
        let reading = read(
            &judge(shape, credential, &policy),
            429,
            &headers(pairs),
            &body,
        );
        let Effect::RateLimited { scope, .. } = reading.effect else {
            panic!("{reading:?}")
        };
        assert_eq!(scope, expected, "{body} {pairs:?}");
    }
}

/// SPEC 7.8, Change 11: Anthropic.
#[test]
fn how_long_anthropic_limits() {
    use LimitSource::*;
    const RESET5: &str = "anthropic-ratelimit-unified-5h-reset";
    const USED5: &str = "anthropic-ratelimit-unified-5h-utilization";
    const OVER5: &str = "anthropic-ratelimit-unified-5h-surpassed-threshold";
    const RESET7: &str = "anthropic-ratelimit-unified-7d-reset";
    const USED7: &str = "anthropic-ratelimit-unified-7d-utilization";
    const OVER7: &str = "anthropic-ratelimit-unified-7d-surpassed-threshold";
    const RESET: &str = "anthropic-ratelimit-unified-reset";
    let at = |seconds: u64| (NOW_S + seconds).to_string();
    let (h1, d3, ms) = (at(3_600), at(259_200), ((NOW_S + 60) * 1_000).to_string());
    let (h1, d3, ms, past) = (&*h1, &*d3, &*ms, &*(NOW_S - 1).to_string());
    #[rustfmt::skip]
    let rows: &[(Pairs<'_>, Option<(u64, LimitSource)>)] = &[
        // Used up: by the threshold or by use, the long window first.
        (&[(RESET5, h1), (USED5, "1.0"), (RESET7, d3), (USED7, "0.4")], Some((3_600, AnthropicFiveHours))),
        (&[(RESET5, h1), (USED5, "0.4"), (RESET7, d3), (USED7, "1")], Some((259_200, AnthropicSevenDays))),
        (&[(RESET5, h1), (OVER5, "true"), (RESET7, d3), (OVER7, "false")], Some((3_600, AnthropicFiveHours))),
        (&[(RESET5, h1), (OVER5, "false"), (RESET7, d3), (OVER7, "True")], Some((259_200, AnthropicSevenDays))),
        (&[(RESET5, h1), (OVER5, "true"), (RESET7, d3), (USED7, "1.2")], Some((259_200, AnthropicSevenDays))),
        // None: the sooner reset.
        (&[(RESET5, h1), (USED5, "0.99"), (RESET7, d3), (USED7, "0.99")], Some((3_600, AnthropicFiveHours))),
        (&[(RESET5, d3), (RESET7, h1)], Some((3_600, AnthropicSevenDays))),
        (&[(RESET7, d3)], Some((259_200, AnthropicSevenDays))),
        (&[(RESET5, ms)], Some((60, AnthropicFiveHours))),
        // A window that is over already says nothing, nor does one without a reset.
        (&[(RESET5, past), (USED5, "1"), (RESET7, d3)], Some((259_200, AnthropicSevenDays))),
        (&[(USED5, "1"), (RESET, h1)], Some((3_600, AnthropicReset))),
        // The windows before the general reset before retry-after.
        (&[(RESET5, h1), (RESET, d3), ("retry-after", "9")], Some((3_600, AnthropicFiveHours))),
        (&[(RESET, d3), ("retry-after", "9")], Some((259_200, AnthropicReset))),
        (&[(RESET, past), ("retry-after", "9")], Some((9, RetryAfter))),
        (&[("retry-after", "9")], Some((9, RetryAfter))),
        // Nothing: no real limit.
        (&[], None),
        (&[(USED5, "1"), (OVER7, "true")], None),
        (&[("retry-after", "soon")], None),
    ];
    let policy = ErrorPolicy::default();
    for (pairs, expected) in rows {
        for credential in [ApiKey, OAuth] {
            let judge = judge(Anthropic, credential, &policy);
            let reading = read(&judge, 429, &headers(pairs), "");
            let effect = expected.map_or(Effect::None, |(seconds, source)| {
                rate_limited(seconds, source)
            });
            assert_eq!(reading.effect, effect, "{pairs:?}");
            let retry_after = expected.map(|(seconds, _)| s(seconds));
            assert_eq!(
                reading.verdict,
                Verdict::Limited { retry_after },
                "{pairs:?}"
            );
        }
    }
}

/// SPEC 7.9.
#[test]
fn session_windows() {
    use SessionStatus::*;
    let hours = |hours: u64| s(hours * 3_600);
    let at = |seconds: u64| Some(seconds.to_string());
    let end = now() + hours(1);
    let span = Some((end - hours(5), end));
    let ms = Some(((NOW_S + 3_600) * 1_000).to_string());
    #[rustfmt::skip]
    let rows = [
        (200, Some("allowed"), at(NOW_S + 3_600), Some((Allowed, span, true))),
        (200, Some("allowed"), ms, Some((Allowed, span, true))),
        (200, Some("allowed_warning"), at(NOW_S + 3_600), Some((AllowedWarning, span, true))),
        (200, Some("allowed_new"), None, Some((Allowed, None, true))),
        (200, Some("rejected"), at(NOW_S + 3_600), Some((Rejected, span, false))),
        (200, Some("other"), at(NOW_S + 3_600), None),
        (200, None, at(NOW_S + 3_600), None),
        (200, Some("allowed"), Some("soon".into()), Some((Allowed, None, true))),
        // A 429 rejects.
        (429, Some("allowed"), at(NOW_S + 3_600), Some((Rejected, span, false))),
        (429, None, at(NOW_S + 3_600), Some((Rejected, span, false))),
        (429, None, None, None),
        // Only a plausible reset: within the window's length, give or take an hour.
        (200, Some("allowed"), at(NOW_S + 6 * 3_600), Some((Allowed, Some((now() + hours(1), now() + hours(6))), true))),
        (200, Some("allowed"), at(NOW_S + 6 * 3_600 + 1), Some((Allowed, None, true))),
        (200, Some("allowed"), at(NOW_S - 3_599), Some((Allowed, Some((now() - hours(6) + s(1), now() - hours(1) + s(1))), true))),
        (200, Some("allowed"), at(NOW_S - 3_600), Some((Allowed, None, true))),
        (200, Some("allowed"), at(0), Some((Allowed, None, true))),
    ];
    for (code, status, reset, expected) in rows {
        let mut pairs = Vec::new();
        pairs.extend(status.map(|status| ("anthropic-ratelimit-unified-5h-status", status)));
        pairs.extend(
            reset
                .as_deref()
                .map(|at| ("anthropic-ratelimit-unified-5h-reset", at)),
        );
        let window = SessionWindow::read(code, &headers(&pairs), now());
        let found = window.map(|w| (w.status, w.span, w.clears_limit()));
        assert_eq!(found, expected, "{code} {pairs:?}");
    }
}

/// SPEC 7.9.
#[test]
fn how_much_of_a_window_is_used() {
    const STATUS: &str = "anthropic-ratelimit-unified-5h-status";
    const USED5: &str = "anthropic-ratelimit-unified-5h-utilization";
    const USED7: &str = "anthropic-ratelimit-unified-7d-utilization";
    #[rustfmt::skip]
    let rows = [
        ("0", Some(0.0)),
        ("0.42", Some(0.42)),
        (" 1.0 ", Some(1.0)),
        ("1.05", Some(1.05)),
        ("10", Some(10.0)),
        // Percent, or nonsense.
        ("42", None),
        ("-0.1", None),
        ("inf", None),
        ("much", None),
        ("", None),
    ];
    for (text, used) in rows {
        let pairs = [(STATUS, "allowed"), (USED5, text), (USED7, text)];
        let window = SessionWindow::read(200, &headers(&pairs), now()).unwrap();
        assert_eq!(window.used, used, "{text}");
        assert_eq!(weekly_use(&headers(&pairs)), used, "{text}");
    }
    let status = headers(&[(STATUS, "rejected")]);
    assert_eq!(SessionWindow::read(200, &status, now()).unwrap().used, None);
    assert_eq!(weekly_use(&status), None);
}

/// SPEC 9.3.
#[test]
fn codex_usage_is_read_from_any_answer() {
    let pairs = [
        ("x-codex-primary-used-percent", "12.5"),
        ("x-codex-primary-window-minutes", "300"),
        ("x-codex-primary-reset-after-seconds", "60"),
        ("x-codex-secondary-used-percent", "-1"),
        ("x-codex-secondary-window-minutes", "10080"),
    ];
    let usage = CodexUsage::read(&headers(&pairs), now());
    let five_hours = CodexWindow {
        used_percent: Some(12.5),
        resets_in: Some(s(60)),
        minutes: Some(300),
    };
    let seven_days = CodexWindow {
        minutes: Some(10_080),
        ..CodexWindow::default()
    };
    assert_eq!(
        usage,
        CodexUsage {
            five_hours,
            seven_days
        }
    );
    assert_eq!(
        CodexUsage::read(&HeaderMap::new(), now()),
        CodexUsage::default()
    );
}

fn rule(code: u16, keywords: &[&str], duration_minutes: u32, description: &str) -> TempRule {
    TempRule {
        error_code: code,
        keywords: keywords.iter().map(|&word| word.to_owned()).collect(),
        duration_minutes,
        description: description.to_owned(),
    }
}

/// SPEC 7.5, the third point; 8.6, "secondary failover".
#[test]
fn temporary_rules() {
    let policy = ErrorPolicy {
        temp_unschedulable_rules: vec![
            rule(404, &["no such", "gone"], 7, "moved"),
            rule(404, &["gone"], 9, ""),
            rule(429, &["busy"], 3, " "),
            rule(401, &["busy"], 3, "never"),
            rule(503, &[""], 3, "never"),
            rule(503, &["MAINTENANCE"], 0, "tonight sk-abcdef123"),
        ],
        ..ErrorPolicy::default()
    };
    let out = |minutes_: u64, reason: &str| Effect::TempUnschedulable {
        lasts: minutes(minutes_),
        reason: reason.to_owned(),
    };
    let limited = Verdict::Limited {
        retry_after: Some(s(9)),
    };
    let at_9 = rate_limited(9, LimitSource::RetryAfter);
    #[rustfmt::skip]
    let rows = [
        (404, "it is GONE", Verdict::Failed, out(7, "Rule for 404: moved")),
        (404, "No Such model", Verdict::Failed, out(7, "Rule for 404: moved")),
        (404, "unknown", Verdict::ClientFault, Effect::None),
        (405, "gone", Verdict::ClientFault, Effect::None),
        // In place of what the table says; the verdict stays.
        (429, "busy", limited, out(3, "Rule for 429")),
        (429, "", limited, at_9),
        (503, "down for maintenance", Verdict::Failed, out(1, "Rule for 503: tonight sk-***")),
        (503, "", Verdict::Failed, Effect::Failing),
        // Never for a 401.
        (401, "busy", Verdict::BadCredential, error("Authentication failed (401)")),
        (200, "gone", Verdict::Fine, Effect::None),
    ];
    for (status, body, verdict, effect) in rows {
        let pairs = headers(&[("retry-after", "9")]);
        let reading = read(&judge(OpenAi, ApiKey, &policy), status, &pairs, body);
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect),
            "{status} {body}"
        );
        assert!(!reading.retry_same);
    }
    // For every kind of account.
    let reading = read(
        &judge(Anthropic, OAuth, &policy),
        404,
        &HeaderMap::new(),
        "gone",
    );
    assert_eq!(reading.effect, out(7, "Rule for 404: moved"));
}

#[test]
fn the_clients_words_match_no_rule_and_no_phrase() {
    let rules = [400, 404, 503].map(|status| rule(status, &["overloaded"], 5, ""));
    let policy = ErrorPolicy {
        temp_unschedulable_rules: rules.to_vec(),
        ..ErrorPolicy::default()
    };
    let disabled = "organization has been disabled";
    let out = |status: u16| Effect::TempUnschedulable {
        lasts: minutes(5),
        reason: format!("Rule for {status}"),
    };
    use Verdict::{BadCredential, ClientFault, Failed};
    #[rustfmt::skip]
    let rows: [(u16, &[&str], &str, Verdict, Effect); 12] = [
        (404, &[], "The model `overloaded` does not exist", ClientFault, Effect::None),
        (404, &["overloaded"], "The model overloaded does not exist", ClientFault, Effect::None),
        (404, &["a", "Overloaded"], "The model OVERLOADED does not exist", ClientFault, Effect::None),
        (404, &["gpt-5"], "The model gpt-5 is overloaded", Failed, out(404)),
        (400, &["x"], "Bad value \"overloaded\"", ClientFault, Effect::None),
        (400, &["x"], "We are overloaded", Failed, out(400)),
        (503, &["overloaded"], "No channel for model overloaded", Failed, Effect::Failing),
        (503, &["x"], "No channel, overloaded", Failed, out(503)),
        (503, &["x"], "the pool 'p' is overloaded", Failed, out(503)),
        (400, &[disabled], &format!("No model {disabled}"), ClientFault, Effect::None),
        (400, &["x"], &format!("Your {disabled}"), BadCredential, error(&format!("Organization disabled (400): Your {disabled}"))),
        (400, &["error while processing your request"], "No model error while processing your request", ClientFault, Effect::None),
    ];
    for (status, echoed, message, verdict, effect) in rows {
        let judge = Judge {
            echoed,
            ..judge(OpenAi, ApiKey, &policy)
        };
        let body = json!({"error": {"message": message, "param": echoed.first()}}).to_string();
        let reading = read(&judge, status, &HeaderMap::new(), &body);
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect),
            "{status} {message}"
        );
    }
    // Neither in a stream.
    let policy = ErrorPolicy {
        temp_unschedulable_rules: [400, 500]
            .map(|status| rule(status, &["overloaded"], 5, ""))
            .to_vec(),
        ..ErrorPolicy::default()
    };
    #[rustfmt::skip]
    let rows: [(&[&str], &str, &str, Verdict, Effect); 5] = [
        (&["overloaded"], "server_error", "Model overloaded failed", Failed, Effect::Failing),
        (&["x"], "server_error", "Model x overloaded", Failed, out(500)),
        (&["policy"], "server_error", "Model policy failed", Failed, Effect::Failing),
        (&["x"], "invalid_prompt", "Not 'overloaded'", ClientFault, Effect::None),
        (&["x"], "invalid_prompt", "Overloaded", Failed, out(400)),
    ];
    for (echoed, code, message, verdict, effect) in rows {
        let judge = Judge {
            echoed,
            ..judge(OpenAi, ApiKey, &policy)
        };
        let reading = judge.stream_failure(&failure("", code, message), &HeaderMap::new(), now());
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect),
            "{message}"
        );
    }
}

/// SPEC 7.5, the second point; 7.6, the last row; 8.6.
#[test]
fn custom_error_codes() {
    let policy = ErrorPolicy {
        custom_error_codes: Some(vec![403, 429, 503, 404]),
        temp_unschedulable_rules: vec![
            rule(400, &["x"], 1, ""),
            rule(500, &["x"], 1, ""),
            rule(503, &["x"], 1, ""),
        ],
        ..ErrorPolicy::default()
    };
    let judged = |credential, status, body| {
        read(
            &judge(OpenAi, credential, &policy),
            status,
            &HeaderMap::new(),
            body,
        )
    };
    #[rustfmt::skip]
    let rows = [
        // Change 12 holds.
        (400, "x", Verdict::ClientFault, Effect::None),
        (405, "x", Verdict::ClientFault, Effect::None),
        (409, "x", Verdict::ClientFault, Effect::None),
        (413, "x", Verdict::ClientFault, Effect::None),
        (415, "x", Verdict::ClientFault, Effect::None),
        (422, "x", Verdict::ClientFault, Effect::None),
        // Of the account or its moment, which is not listed.
        (400, r#"{"error":{"message":"Your organization has been disabled"}}"#, Verdict::Unlisted, Effect::None),
        (400, r#"{"error":{"message":"Error while processing your request"}}"#, Verdict::Unlisted, Effect::None),
        (401, "x", Verdict::Unlisted, Effect::None),
        (408, "x", Verdict::Unlisted, Effect::None),
        (500, "x", Verdict::Unlisted, Effect::None),
        (529, "x", Verdict::Unlisted, Effect::None),
        (200, "x", Verdict::Fine, Effect::None),
        (403, FORBIDDEN, Verdict::BadCredential, strike("Access forbidden (403): m")),
        (403, "", Verdict::BadCredential, Effect::Failing),
        (429, "", Verdict::Limited { retry_after: None }, rate_limited(30, LimitSource::Setting)),
        (503, "", Verdict::Failed, error("Custom error code 503")),
        (503, r#"{"message":"m"}"#, Verdict::Failed, error("Custom error code 503: m")),
        (503, "x", Verdict::Failed, Effect::TempUnschedulable { lasts: minutes(1), reason: "Rule for 503".into() }),
        (404, "", Verdict::ClientFault, Effect::None),
    ];
    for (status, body, verdict, effect) in rows {
        let reading = judged(ApiKey, status, body);
        assert_eq!(
            (reading.verdict, reading.effect),
            (verdict, effect),
            "{status} {body}"
        );
        assert!(!reading.retry_same);
    }
    // For API-key accounts only.
    assert_eq!(judged(OAuth, 422, "").verdict, Verdict::ClientFault);
    assert_eq!(judged(OAuth, 503, "").effect, Effect::Failing);
    // An empty list lists nothing.
    let none = ErrorPolicy {
        custom_error_codes: Some(Vec::new()),
        ..ErrorPolicy::default()
    };
    for status in [401, 402, 403, 408, 429, 503, 529] {
        let reading = read(
            &judge(Anthropic, ApiKey, &none),
            status,
            &HeaderMap::new(),
            "",
        );
        assert_eq!(reading, Reading::only(Verdict::Unlisted), "{status}");
    }
}

/// SPEC 7.5, the first point; 7.2.
#[test]
fn pool_mode() {
    let pool = ErrorPolicy {
        pool_mode: true,
        temp_unschedulable_rules: vec![rule(404, &["x"], 1, "")],
        ..ErrorPolicy::default()
    };
    let limited = Verdict::Limited { retry_after: None };
    let transient = r#"{"error":{"message":"An error occurred while processing your request"}}"#;
    let disabled = r#"{"error":{"message":"Your organization has been disabled"}}"#;
    #[rustfmt::skip]
    let rows = [
        (401, "", Verdict::BadCredential, true),
        (402, "", Verdict::BadCredential, false),
        (403, "", Verdict::BadCredential, true),
        (429, "", limited, true),
        (400, transient, Verdict::Failed, true),
        (400, disabled, Verdict::BadCredential, false),
        (400, "", Verdict::ClientFault, false),
        (404, "x", Verdict::ClientFault, false),
        (500, "", Verdict::Failed, false),
        (529, "", Verdict::Overloaded, false),
        (200, "", Verdict::Fine, false),
    ];
    for (status, body, verdict, retry_same) in rows {
        let reading = read(
            &judge(OpenAi, ApiKey, &pool),
            status,
            &HeaderMap::new(),
            body,
        );
        let expected = Reading {
            verdict,
            effect: Effect::None,
            retry_same,
        };
        assert_eq!(reading, expected, "{status} {body}");
    }
    // For API-key accounts only.
    let reading = read(
        &judge(OpenAi, OAuth, &pool),
        403,
        &HeaderMap::new(),
        FORBIDDEN,
    );
    assert_eq!(
        (reading.effect, reading.retry_same),
        (strike("Access forbidden (403): m"), false)
    );
    // With custom error codes they count again, and there is no staying on an account that is out.
    let both = ErrorPolicy {
        custom_error_codes: Some(vec![400, 403, 429]),
        ..pool
    };
    #[rustfmt::skip]
    let rows = [
        (OpenAi, 403, FORBIDDEN, Verdict::BadCredential, strike("Access forbidden (403): m"), false),
        (OpenAi, 429, "", limited, rate_limited(30, LimitSource::Setting), false),
        (Anthropic, 429, "", limited, Effect::None, true),
        (OpenAi, 400, transient, Verdict::Failed, Effect::None, true),
        (OpenAi, 401, "", Verdict::Unlisted, Effect::None, false),
    ];
    for (shape, status, body, verdict, effect, retry_same) in rows {
        let reading = read(
            &judge(shape, ApiKey, &both),
            status,
            &HeaderMap::new(),
            body,
        );
        assert_eq!(
            reading,
            Reading {
                verdict,
                effect,
                retry_same
            },
            "{shape:?} {status}"
        );
    }
}

#[test]
fn no_answer_at_all() {
    let pool = ErrorPolicy {
        pool_mode: true,
        ..ErrorPolicy::default()
    };
    for policy in [&pool, &ErrorPolicy::default()] {
        let reading = judge(OpenAi, ApiKey, policy).transport_failure();
        let expected = Reading {
            verdict: Verdict::Failed,
            effect: Effect::Failing,
            retry_same: false,
        };
        assert_eq!(reading, expected);
    }
}

fn failure(kind: &str, code: &str, message: &str) -> Failure {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Failure {
        kind: some(kind),
        code: some(code),
        message: some(message),
    }
}

#[test]
fn failures_within_a_stream() {
    use Verdict::*;
    let limited = Limited { retry_after: None };
    #[rustfmt::skip]
    let rows = [
        (OpenAi, "", "", "", Failed),
        (OpenAi, "", "server_error", "The server had an error", Failed),
        (OpenAi, "server_error", "", "", Failed),
        (OpenAi, "upstream_error", "something_new", "who knows", Failed),
        (OpenAi, "", "", "Connection reset", Failed),
        (OpenAi, "", "rate_limit_exceeded", "Rate limit reached", limited),
        (OpenAi, "requests", "rate_limit_exceeded", "", limited),
        (OpenAi, "tokens", "Rate_Limit_Exceeded", "", limited),
        (OpenAi, "usage_limit_reached", "", "", limited),
        (OpenAi, "rate_limit_error", "", "", limited),
        (OpenAi, "insufficient_quota", "insufficient_quota", "You exceeded your quota", limited),
        (OpenAi, "", "usage_not_included", "", limited),
        (OpenAi, "invalid_request_error", "invalid_api_key", "Incorrect API key", BadCredential),
        (OpenAi, "authentication_error", "", "", BadCredential),
        (OpenAi, "permission_error", "", "", BadCredential),
        (OpenAi, "invalid_request_error", "model_not_found", "The model does not exist", BadCredential),
        (Anthropic, "permission_error", "model_not_found", "", BadCredential),
        (OpenAi, "billing_error", "", "", BadCredential),
        (OpenAi, "", "account_deactivated", "", BadCredential),
        (OpenAi, "", "server_is_overloaded", "", Overloaded),
        (OpenAi, "", "slow_down", "", Overloaded),
        (OpenAi, "overloaded_error", "", "", Overloaded),
        (OpenAi, "invalid_request_error", "", "", ClientFault),
        (OpenAi, "invalid_request_error", "unknown_parameter", "", ClientFault),
        (OpenAi, "", "content_policy_violation", "", ClientFault),
        (OpenAi, "", "image_content_policy_violation", "", ClientFault),
        (OpenAi, "", "invalid_prompt", "", ClientFault),
        (OpenAi, "", "invalid_image_url", "", ClientFault),
        (OpenAi, "", "image_too_large", "", ClientFault),
        (OpenAi, "", "context_length_exceeded", "", ClientFault),
        (OpenAi, "", "cyber_policy", "", ClientFault),
        (OpenAi, "", "empty_image_file", "", ClientFault),
        (OpenAi, "", "vector_store_timeout", "", Failed),
        (OpenAi, "", "", "Your request was flagged by our Safety system", ClientFault),
        (OpenAi, "", "", "This is against our usage POLICY", ClientFault),
        (OpenAi, "", "", "This tool is not allowed here", ClientFault),
        (OpenAi, "", "server_error", "Terms violation", ClientFault),
        (OpenAi, "invalid_request_error", "", "Your organization has been disabled", BadCredential),
        (Anthropic, "overloaded_error", "", "Overloaded", Overloaded),
        (Anthropic, "rate_limit_error", "", "", limited),
        (Anthropic, "api_error", "", "Internal server error", Failed),
        (Anthropic, "timeout_error", "", "", Failed),
        (Anthropic, "authentication_error", "", "", BadCredential),
        (Anthropic, "permission_error", "", "", BadCredential),
        (Anthropic, "billing_error", "", "", BadCredential),
        (Anthropic, "invalid_request_error", "", "max_tokens: too many", ClientFault),
        (Anthropic, "invalid_request_error", "", "Your credit balance is too low", BadCredential),
        (Anthropic, "not_found_error", "", "", ClientFault),
        (Anthropic, "request_too_large", "", "", ClientFault),
        (Anthropic, "new_error", "", "against policy", Failed),
        (Anthropic, "", "", "", Failed),
    ];
    let policy = ErrorPolicy::default();
    let none = HeaderMap::new();
    for (shape, kind, code, message, verdict) in rows {
        let failure = failure(kind, code, message);
        let reading = judge(shape, ApiKey, &policy).stream_failure(&failure, &none, now());
        assert_eq!(reading.verdict, verdict, "{shape:?} {failure:?}");
        let quiet = matches!(verdict, ClientFault)
            || code == "model_not_found"
            || (shape == Anthropic && verdict == limited);
        assert_eq!(
            reading.effect == Effect::None,
            quiet,
            "{shape:?} {failure:?}"
        );
    }
}

#[test]
fn what_a_failure_within_a_stream_means_for_the_account() {
    let full = headers(&[
        ("x-codex-primary-used-percent", "100"),
        ("x-codex-primary-reset-after-seconds", "600"),
        ("anthropic-ratelimit-unified-5h-utilization", "1"),
        (
            "anthropic-ratelimit-unified-5h-reset",
            &(NOW_S + 60).to_string(),
        ),
    ]);
    // The answer began well: these windows have nothing to do with what came later.
    let roomy = headers(&[
        ("x-codex-primary-used-percent", "40"),
        ("x-codex-primary-reset-after-seconds", "600000"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.4"),
        (
            "anthropic-ratelimit-unified-5h-reset",
            &(NOW_S + 60).to_string(),
        ),
        (
            "anthropic-ratelimit-unified-reset",
            &(NOW_S + 60).to_string(),
        ),
    ]);
    let limit = failure("", "rate_limit_error", "");
    let broken = failure("api_error", "", "");
    let key = failure("authentication_error", "", "m");
    let forbidden = failure("permission_error", "", "m");
    let disabled = failure(
        "permission_error",
        "",
        "This organization has been disabled.",
    );
    let quoted = failure(
        "permission_error",
        "",
        "No access to `organization has been disabled`",
    );
    let busy = failure("overloaded_error", "", "Overloaded");
    let new = failure("new_error", "", "m");
    let table = ErrorPolicy::default();
    let pool = ErrorPolicy {
        pool_mode: true,
        ..ErrorPolicy::default()
    };
    let codes = ErrorPolicy {
        custom_error_codes: Some(vec![403, 500]),
        ..ErrorPolicy::default()
    };
    let rules = ErrorPolicy {
        temp_unschedulable_rules: vec![rule(500, &["api_error"], 5, "")],
        ..ErrorPolicy::default()
    };
    let by_rule = Effect::TempUnschedulable {
        lasts: minutes(5),
        reason: "Rule for 500".into(),
    };
    #[rustfmt::skip]
    let rows = [
        (&table, OpenAi, &limit, &full, rate_limited(600, LimitSource::CodexSevenDays), false),
        (&table, OpenAi, &limit, &roomy, rate_limited(30, LimitSource::Setting), false),
        (&table, Anthropic, &limit, &full, rate_limited(60, LimitSource::AnthropicFiveHours), false),
        (&table, Anthropic, &limit, &roomy, Effect::None, false),
        (&table, OpenAi, &key, &roomy, error("Authentication failed (401): m"), false),
        (&table, OpenAi, &forbidden, &roomy, strike("Access forbidden (403): m"), false),
        (&table, Anthropic, &forbidden, &roomy, Effect::Failing, false),
        (&table, Anthropic, &disabled, &roomy, error("Organization disabled (403): This organization has been disabled."), false),
        (&table, Anthropic, &quoted, &roomy, Effect::Failing, false),
        (&table, Anthropic, &key, &roomy, error("Authentication failed (401): m"), false),
        (&table, Anthropic, &busy, &roomy, Effect::Overloaded { lasts: minutes(10) }, false),
        (&table, Anthropic, &broken, &roomy, Effect::Failing, false),
        (&table, Anthropic, &new, &roomy, Effect::Failing, false),
        (&table, OpenAi, &broken, &roomy, Effect::Failing, false),
        (&pool, OpenAi, &limit, &full, Effect::None, true),
        (&pool, OpenAi, &key, &full, Effect::None, true),
        (&pool, OpenAi, &broken, &full, Effect::None, false),
        (&codes, OpenAi, &limit, &full, Effect::None, false),
        (&codes, OpenAi, &forbidden, &full, strike("Access forbidden (403): m"), false),
        (&codes, OpenAi, &broken, &full, Effect::Failing, false),
        (&rules, OpenAi, &broken, &full, by_rule, false),
    ];
    for (policy, shape, failure, headers, effect, retry_same) in rows {
        let reading = judge(shape, ApiKey, policy).stream_failure(failure, headers, now());
        let said = format!("{policy:?} {shape:?} {failure:?}");
        assert_eq!(
            (reading.effect, reading.retry_same),
            (effect, retry_same),
            "{said}"
        );
        assert!(reading.verdict.fails_over(), "{said}");
    }
}

fn policies() -> impl Strategy<Value = ErrorPolicy> {
    let codes = prop::option::of(prop::collection::vec(statuses(), 0..4));
    let rules = prop::collection::vec((statuses(), "[a-z]{0,2}"), 0..3);
    (any::<bool>(), codes, rules).prop_map(|(pool_mode, custom_error_codes, rules)| ErrorPolicy {
        pool_mode,
        pool_mode_retry_count: 3,
        custom_error_codes,
        temp_unschedulable_rules: rules
            .iter()
            .map(|(status, word)| rule(*status, &[word], 1, ""))
            .collect(),
    })
}

fn statuses() -> impl Strategy<Value = u16> {
    let known = [
        200, 302, 400, 401, 402, 403, 404, 408, 422, 429, 500, 503, 529,
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()), 1 => any::<u16>()]
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let names = prop::sample::select(vec![
        "retry-after",
        "retry-after-ms",
        "x-codex-primary-used-percent",
        "x-codex-primary-reset-after-seconds",
        "x-codex-primary-reset-at",
        "x-codex-secondary-window-minutes",
        "anthropic-ratelimit-unified-reset",
        "anthropic-ratelimit-unified-5h-reset",
        "anthropic-ratelimit-unified-5h-utilization",
        "anthropic-ratelimit-unified-7d-surpassed-threshold",
        "anthropic-ratelimit-unified-5h-status",
    ]);
    let value = prop_oneof!["[0-9.]{1,20}", "[ -~]{0,12}", Just("true".to_owned())];
    prop::collection::vec((names, value), 0..6).prop_map(|pairs| {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        headers(&pairs)
    })
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "organization has been disabled",
        "credit balance",
        "An error occurred while processing your request",
        "x",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        (words, any::<f64>(), "[a-z_]{0,20}").prop_map(|(message, resets, code)| {
            json!({
                "error": {"message": message, "code": code, "type": "usage_limit_reached", "resets_at": resets, "resets_in_seconds": resets},
            })
            .to_string()
            .into_bytes()
        }),
    ]
}

fn judges() -> impl Strategy<Value = (Shape, CredentialKind)> {
    let shape = prop::sample::select(vec![OpenAi, Anthropic]);
    (shape, prop::sample::select(vec![ApiKey, OAuth]))
}

/// What holds of every reading, however it came about.
fn check(reading: &Reading, policy: &ErrorPolicy, credential: CredentialKind) {
    let pool = policy.pool_mode && credential == ApiKey;
    if pool && policy.custom_error_codes.is_none() {
        assert_eq!(reading.effect, Effect::None);
    }
    if !reading.verdict.fails_over() {
        assert_eq!(reading.effect, Effect::None);
        assert!(!reading.retry_same);
    }
    if reading.retry_same {
        assert!(pool && reading.effect == Effect::None);
    }
    let is_sensible = |lasts: &Duration| !lasts.is_zero() && *lasts <= LONGEST_REST;
    match &reading.effect {
        Effect::None | Effect::Failing => {}
        Effect::RateLimited { lasts, .. } | Effect::Overloaded { lasts } => {
            assert!(is_sensible(lasts));
        }
        Effect::TempUnschedulable { lasts, reason } => {
            assert!(is_sensible(lasts) && reason.chars().count() <= LONGEST_REASON);
        }
        Effect::Error { message } => assert!(message.chars().count() <= LONGEST_REASON),
        Effect::Strike(strike) => assert!(strike.message.chars().count() <= LONGEST_REASON),
    }
}

proptest! {
    #[test]
    fn any_answer_is_read_soundly(
        status in statuses(),
        headers in any_headers(),
        body in bodies(),
        (shape, credential) in judges(),
        policy in policies(),
    ) {
        let judge = judge(shape, credential, &policy);
        let reading = judge.refusal(&Refusal { status, headers: &headers, body: &body, now: now() });
        prop_assert_eq!(reading.verdict == Verdict::Fine, (100..300).contains(&status));
        check(&reading, &policy, credential);
        let _ = SessionWindow::read(status, &headers, now());
        let _ = judge.refusal(&Refusal { status, headers: &headers, body: &body, now: SystemTime::UNIX_EPOCH });
    }

    #[test]
    fn any_failure_in_a_stream_is_read_soundly(
        (kind, code, message) in ("[a-z_]{0,12}", "(rate_limit_error|permission_error|[a-z_]{0,12})", any::<String>()),
        headers in any_headers(),
        (shape, credential) in judges(),
        policy in policies(),
    ) {
        let failure = failure(&kind, &code, &message);
        let reading = judge(shape, credential, &policy).stream_failure(&failure, &headers, now());
        prop_assert!(!matches!(reading.verdict, Verdict::Fine | Verdict::Unlisted));
        check(&reading, &policy, credential);
    }

    /// What is the client's own mistake stays one, whatever is in the headers.
    #[test]
    fn a_clients_mistake_never_touches_the_account_but_by_a_rule(
        status in prop::sample::select(vec![400_u16, 404, 405, 409, 413, 415, 422]),
        headers in any_headers(),
        quoted in "[a-z ]{0,40}",
        (shape, credential) in judges(),
    ) {
        let policy = ErrorPolicy::default();
        let body = json!({"error": {"message": format!("invalid value '{quoted}'")}}).to_string();
        let reading = read(&judge(shape, credential, &policy), status, &headers, &body);
        prop_assert_eq!(reading, Reading::only(Verdict::ClientFault));
    }
}

#[test]
fn cooldowns_are_the_operators() {
    let policy = ErrorPolicy::default();
    let headers = HeaderMap::new();
    let effect = |shape, credential, status, cooldowns| {
        let judge = Judge {
            cooldowns,
            ..judge(shape, credential, &policy)
        };
        let refusal = Refusal {
            status,
            headers: &headers,
            body: b"{}",
            now: SystemTime::UNIX_EPOCH,
        };
        judge.refusal(&refusal).effect
    };
    let seconds = Duration::from_secs;
    let cooldowns = Cooldowns {
        rate_limited: seconds(1),
        overloaded: seconds(2),
        unauthorized: seconds(3),
    };
    let rows = [
        (OpenAi, ApiKey, 429, 1),
        (Anthropic, OAuth, 529, 2),
        (Anthropic, OAuth, 401, 3),
    ];
    for (shape, credential, status, lasts) in rows {
        let found = match effect(shape, credential, status, cooldowns) {
            Effect::RateLimited { lasts, .. }
            | Effect::Overloaded { lasts }
            | Effect::TempUnschedulable { lasts, .. } => lasts,
            other => panic!("{status}: {other:?}"),
        };
        assert_eq!(found, seconds(lasts), "{status}");
        let none = Cooldowns {
            rate_limited: Duration::ZERO,
            overloaded: Duration::ZERO,
            unauthorized: Duration::ZERO,
        };
        assert_eq!(
            effect(shape, credential, status, none),
            Effect::None,
            "{status}"
        );
    }
    // What is no cool-down stays: a key that is refused is of no use.
    let refused = effect(Anthropic, ApiKey, 401, cooldowns);
    assert!(matches!(refused, Effect::Error { .. }));
}
