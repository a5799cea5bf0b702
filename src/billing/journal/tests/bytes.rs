//! Laws about bytes: what is written is read, what is not written is never read.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use tollgate_filters::usage::TokenUsage;

use super::*;
use crate::billing::journal::Entry;
use crate::billing::journal::scan::Scan;

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]{0,12}", any::<String>()]
}

fn moment() -> impl Strategy<Value = DateTime<Utc>> {
    let range = DateTime::<Utc>::MIN_UTC.timestamp()..=DateTime::<Utc>::MAX_UTC.timestamp();
    (range, 0u32..1_000_000_000).prop_map(|(s, n)| DateTime::from_timestamp(s, n).unwrap())
}

fn tokens() -> impl Strategy<Value = TokenUsage> {
    any::<[u64; 7]>().prop_map(|n| TokenUsage {
        input: n[0],
        output: n[1],
        cache_creation: n[2],
        cache_creation_5m: n[3],
        cache_creation_1h: n[4],
        cache_read: n[5],
        image_output: n[6],
    })
}

fn trace() -> impl Strategy<Value = AttemptTrace> {
    (text(), text(), any::<Option<u16>>(), any::<u64>()).prop_map(
        |(account, result, status, duration_ms)| AttemptTrace {
            account,
            result,
            status,
            duration_ms,
        },
    )
}

fn any_record() -> impl Strategy<Value = UsageRecord> {
    let texts = vec(text(), 11);
    let options = vec(option::of(text()), 10);
    let numbers = (any::<[i64; 6]>(), any::<[u64; 4]>(), any::<[u32; 3]>());
    let rest = (
        any::<[bool; 3]>(),
        any::<u16>(),
        moment(),
        tokens(),
        vec(trace(), 0..4),
    );
    let enums = (
        select(&Platform::ALL[..]),
        select(
            &[
                Outcome::Ok,
                Outcome::UpstreamError,
                Outcome::ClientGone,
                Outcome::Interrupted,
            ][..],
        ),
        select(
            &[
                UsageSource::Reported,
                UsageSource::Estimated,
                UsageSource::None,
            ][..],
        ),
        select(
            &[
                BillingType::Balance,
                BillingType::Subscription,
                BillingType::None,
            ][..],
        ),
        select(
            &[
                PricingMode::Token,
                PricingMode::PerRequest,
                PricingMode::Image,
            ][..],
        ),
    );
    (texts, options, numbers, rest, enums, any::<Option<u64>>()).prop_map(
        |(mut texts, mut options, numbers, rest, enums, first_token_ms)| {
            let mut text = || texts.pop().unwrap();
            let mut option = || options.pop().unwrap();
            let (signed, unsigned, counts) = numbers;
            let (flags, status, created_at, tokens, trail) = rest;
            UsageRecord {
                request_id: text(),
                client_request_id: option(),
                upstream_request_id: option(),
                created_at,
                user_id: UserId(signed[0]),
                user: text(),
                api_key_id: ApiKeyId(signed[1]),
                api_key: text(),
                group_id: GroupId(signed[2]),
                group: text(),
                fallback_from_group: option(),
                account_id: AccountId(signed[3]),
                account: text(),
                platform: enums.0,
                endpoint: text(),
                upstream_endpoint: text(),
                requested_model: text(),
                model: text(),
                upstream_model: text(),
                model_mapping_chain: option(),
                stream: flags[0],
                status,
                outcome: enums.1,
                tokens,
                image_count: counts[0],
                cost: Money(signed[4]),
                charge: Money(signed[5]),
                rate_multiplier: Multiplier(unsigned[0]),
                account_rate_multiplier: Multiplier(unsigned[1]),
                billing_type: enums.3,
                billing_mode: enums.4,
                channel: option(),
                billing_tier: option(),
                priced: flags[1],
                service_tier: option(),
                reasoning_effort: option(),
                attempts: counts[1],
                account_switches: counts[2],
                trail,
                duration_ms: unsigned[2],
                first_token_ms,
                usage_source: enums.2,
                client_disconnected: flags[2],
                ip: option(),
                user_agent: option(),
            }
        },
    )
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (text(), any::<[i64; 3]>(), moment()).prop_map(|(request_id, n, at)| {
            Entry::Reserved(Reserved {
                request_id,
                user_id: UserId(n[0]),
                api_key_id: ApiKeyId(n[1]),
                amount: Money(n[2]),
                at,
            })
        }),
        (any_record(), any::<u64>(), any::<i64>()).prop_map(|(record, body_len, reserved)| {
            Entry::Sent(Box::new(Draft {
                record,
                body_len,
                reserved: Money(reserved),
            }))
        }),
        (text(), any::<u64>(), option::of(tokens()), any::<u32>()).prop_map(
            |(request_id, output_bytes, usage, image_count)| Entry::Progress {
                request_id,
                progress: Progress {
                    output_bytes,
                    usage,
                    image_count,
                },
            }
        ),
        any_record().prop_map(|record| Entry::Settled(Arc::new(record))),
        text().prop_map(|request_id| Entry::Voided { request_id }),
    ]
}

proptest! {
    #[test]
    fn an_entry_comes_back_with_every_field(entry in any_entry()) {
        let encoded = entry.encode();
        prop_assert_eq!(Entry::decode(encoded.kind, &encoded.payload), Ok(entry));
    }

    #[test]
    fn no_bytes_make_decoding_panic(kind in 0u8..8, bytes in vec(any::<u8>(), 0..300)) {
        let _ = Entry::decode(kind, &bytes);
    }

    #[test]
    fn an_entry_that_is_cut_or_changed_never_panics(
        entry in any_entry(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut encoded = entry.encode();
        let at = at.index(encoded.payload.len());
        prop_assert!(Entry::decode(encoded.kind, &encoded.payload[..at]).is_err());
        encoded.payload[at] ^= flip;
        let _ = Entry::decode(encoded.kind, &encoded.payload);
    }
}

/// A journal of some segments on disk, closed in the way of a crash.
fn written() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    for n in 0..40 {
        let id = format!("req_{n}");
        journal.reserved(&reserved(&id, 10 + n));
        journal.sent(&draft(&id, 10 + n)).unwrap();
        match n % 4 {
            0 => journal.progress(&id, progress(99)),
            1 => {}
            _ => journal.settled(Arc::new(record(&id))),
        }
    }
    crash(&directory)
}

fn entries(directory: &Path) -> Vec<Entry> {
    let scan = Scan::new(&directory.join("journal")).unwrap();
    scan.filter_map(|scanned| scanned.entry.ok()).collect()
}

#[test]
fn a_journal_is_read_as_it_was_written() {
    let directory = written();
    let entries = entries(directory.path());
    let ids: Vec<_> = entries
        .iter()
        .filter(|entry| entry.kind() == "sent")
        .map(|entry| entry.request_id().to_owned())
        .collect();
    let all: Vec<_> = (0..40).map(|n| format!("req_{n}")).collect();
    assert_eq!(ids, all);
    assert!(segments(directory.path()).len() > 5, "segments change");
    assert!(entries.contains(&Entry::Sent(Box::new(draft("req_3", 13)))));
    assert!(entries.contains(&Entry::Settled(Arc::new(record("req_3")))));
}

#[test]
fn what_is_written_while_a_journal_is_read_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    let settle = |id| journal.settled(Arc::new(record(id)));
    settle("a");
    settle("b");
    let mut scan = Scan::new(&directory.path().join("journal")).unwrap();
    let first = scan.next().unwrap().entry.unwrap();
    // The reader has looked at the place where these come to stand.
    settle("c");
    settle("d");
    let rest = scan.by_ref().map(|scanned| scanned.entry.unwrap());
    let ids: Vec<_> = [first].into_iter().chain(rest).collect();
    let ids: Vec<_> = ids.iter().map(Entry::request_id).collect();
    assert_eq!(ids, ["a", "b", "c", "d"]);
    assert_eq!(scan.tail().unwrap().torn_bytes, 0);
}

#[test]
fn a_journal_that_is_cut_anywhere_gives_a_beginning_of_its_entries() {
    let whole = written();
    let all = entries(whole.path());
    let paths = segments(whole.path());
    for (index, path) in paths.iter().enumerate() {
        let length = std::fs::metadata(path).unwrap().len();
        // Every byte of the first and the last, some of the others.
        let step = if index == 0 || index + 1 == paths.len() {
            1
        } else {
            97
        };
        for cut in (0..length).step_by(step) {
            let copy = crash(&whole);
            let paths = segments(copy.path());
            for later in &paths[index + 1..] {
                std::fs::remove_file(later).unwrap();
            }
            let file = File::options().write(true).open(&paths[index]).unwrap();
            file.set_len(cut).unwrap();
            let left = entries(copy.path());
            assert!(all.starts_with(&left), "cut at {cut} of {index}");
            if cut % 53 == 0 {
                let (_, first) = small(copy.path(), None);
                assert_eq!(first.damage, [] as [String; 0], "cut at {cut} of {index}");
                let (_, again) = small(copy.path(), None);
                assert_eq!(again.settled, first.settled);
                assert_eq!(again.unfinished, first.unfinished);
                assert_eq!((again.torn_bytes, again.voided), (0, 0));
                assert_eq!(again.damage, [] as [String; 0], "cut at {cut} of {index}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_make_an_entry(
        flips in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..6),
    ) {
        let whole = written();
        let all = entries(whole.path());
        let paths = segments(whole.path());
        for (file, at, flip) in flips {
            let path = &paths[file.index(paths.len())];
            let mut bytes = std::fs::read(path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(path, bytes).unwrap();
        }
        for entry in entries(whole.path()) {
            prop_assert!(all.contains(&entry), "{entry:?}");
        }
        let (_, recovered) = small(whole.path(), None);
        for unfinished in recovered.unfinished {
            prop_assert!(all.contains(&Entry::Sent(Box::new(unfinished.draft))));
        }
    }
}

#[test]
fn bytes_of_another_place_are_no_entry() {
    let directory = written();
    let paths = segments(directory.path());
    let bytes = std::fs::read(&paths[0]).unwrap();
    // A segment under the number of another, and one of another journal.
    std::fs::write(&paths[1], &bytes).unwrap();
    let foreign = written();
    std::fs::copy(&segments(foreign.path())[2], &paths[2]).unwrap();
    let scan = Scan::new(&directory.path().join("journal")).unwrap();
    let damage: Vec<String> = scan
        .filter_map(|scanned| Some((scanned.at.segment, scanned.entry.err()?)))
        .map(|(segment, damage)| format!("{segment} {damage}"))
        .collect();
    assert!(damage[0].starts_with("2 the header"), "{damage:?}");
    assert!(damage[1].starts_with("3 the segment belongs"), "{damage:?}");
}

#[test]
fn a_segment_of_a_later_version_is_not_passed_over() {
    let directory = written();
    let path = &segments(directory.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    bytes[8] = 3;
    let crc = crc32fast::hash(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
    let opened = Journal::open(options(directory.path(), 0), None);
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("has the format 3"), "{error}");
}
