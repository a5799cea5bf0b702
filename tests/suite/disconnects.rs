//! Clients that leave, at every point of a request and in every way; and what becomes of the
//! request, its usage and its slots.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, TestCa};

use crate::call::{Call, LEAVINGS, Leaving, Protocol};
use crate::dialect::{Dialect, OUTPUT, in_each_dialect};
use crate::harness::{Gateway, KEY, LIMIT, Setup};

const TEXT: &str = "Hello wide world";

fn sse(dialect: Dialect) -> Answer {
    dialect.sse("r", &[TEXT, " and on"])
}

/// Frames up to the first delta.
fn begun(dialect: Dialect) -> usize {
    dialect.cut("r", &[TEXT]).len()
}

fn whole_json(dialect: Dialect) -> Answer {
    dialect.body("r", TEXT)
}

/// Where the leaving of a client under way is written down, which is nowhere else to be seen.
fn watching(dialect: Dialect, setup: Setup) -> Setup {
    setup
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .set("LOGGING__LEVEL", "debug")
}

/// Waits until the server has missed `count` clients.
async fn missed(gateway: &Gateway, count: usize) {
    let seen = || gateway.logged().matches("the client has left").count();
    gateway
        .wait(&format!("{count} clients to be missed"), || seen() >= count)
        .await;
}

fn assert_left(record: &Value, source: &str, output: u64, what: &str) {
    assert_eq!(
        (
            &record["outcome"],
            &record["client_disconnected"],
            &record["usage_source"],
            &record["output_tokens"],
        ),
        (
            &json!("client_gone"),
            &json!(true),
            &json!(source),
            &json!(output)
        ),
        "{what}: {record:#}"
    );
}

/// When the client leaves a request that is with a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeTheHeader,
    InThePreamble,
    InTheStream,
    InTheJson,
}

const MOMENTS: [Moment; 4] = [
    Moment::BeforeTheHeader,
    Moment::InThePreamble,
    Moment::InTheStream,
    Moment::InTheJson,
];

impl Moment {
    /// An answer that waits at the gate at this moment.
    fn answer(self, dialect: Dialect, gate: &Gate) -> Answer {
        let preamble = dialect.preamble("r").len();
        match self {
            Moment::BeforeTheHeader => sse(dialect).after(gate),
            Moment::InThePreamble => sse(dialect).gated(preamble, gate),
            Moment::InTheStream => sse(dialect).gated(begun(dialect), gate),
            Moment::InTheJson => whole_json(dialect).chunked(&[100]).gated(1, gate),
        }
    }

    /// What may be known of the usage when an answer ends at this moment: where it comes from, and the output tokens.
    fn known(self, dialect: Dialect) -> &'static [(&'static str, u64)] {
        match (self, dialect) {
            (Moment::BeforeTheHeader, _) => &[("none", 0)],
            (Moment::InThePreamble, Dialect::Responses) => &[("none", 0)],
            // It begins with the input, which is to be paid. As it is held back, nobody sees from outside whether it
            // was read before the end came.
            (Moment::InThePreamble, Dialect::Messages) => &[("estimated", 1), ("none", 0)],
            (Moment::InTheStream, _) => &[("estimated", 4)],
            // The 100 bytes that came of it: all that can be known.
            (Moment::InTheJson, _) => &[("estimated", 25)],
        }
    }

    /// Asserts that the client left at this moment, and that what was known is on record.
    fn assert_known(self, dialect: Dialect, record: &Value, what: &str) {
        let is_recorded = |known: &&(&str, u64)| {
            record["usage_source"] == known.0 && record["output_tokens"] == known.1
        };
        let known = self.known(dialect).iter().find(is_recorded);
        let (source, output) = known.unwrap_or_else(|| panic!("{what}: {record:#}"));
        assert_left(record, source, *output, what);
    }

    /// Sends a request and returns when it has come to this moment.
    async fn reach(
        self,
        dialect: Dialect,
        gateway: &Gateway,
        gate: &Gate,
        protocol: Protocol,
    ) -> Call {
        let reached = gate.reached();
        let request = dialect.request(dialect.model(), self != Moment::InTheJson, KEY);
        let mut call = Call::send(gateway, protocol, &request).await;
        gate.wait_reached(reached + 1).await;
        match self {
            Moment::BeforeTheHeader | Moment::InThePreamble => {}
            Moment::InTheStream => {
                call.head().await.unwrap();
                call.read_until(TEXT, 1).await;
            }
            Moment::InTheJson => {
                call.head().await.unwrap();
                call.chunk().await.unwrap().unwrap();
            }
        }
        call
    }
}

in_each_dialect!(before_the_body_is_complete_nothing_is_sent);
async fn before_the_body_is_complete_nothing_is_sent(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream])).start().await;
    let mut open = Vec::new();
    for (count, leaving) in LEAVINGS.into_iter().enumerate() {
        let request = dialect.streamed(dialect.model());
        let call = Call::begin(&gateway, leaving.protocol(), &request, "{\"model\":").await;
        gateway.wait_metric("requests_in_flight", 1.0).await;
        open.extend(call.leave(leaving).await);
        gateway.wait_metric("requests_in_flight", 0.0).await;
        let left = gateway.metric("clients_gone_total{phase=\"before\"}");
        assert_eq!(left, (count + 1) as f64, "{leaving:?}");
    }
    assert_eq!(upstream.total(), 0);
    assert!(gateway.records().is_empty());
}

in_each_dialect!(an_answer_is_read_to_its_end_and_charged_exactly);
async fn an_answer_is_read_to_its_end_and_charged_exactly(dialect: Dialect) {
    for moment in MOMENTS {
        let upstream = FakeUpstream::start().await;
        let gateway = watching(dialect, Setup::with(&[&upstream])).start().await;
        let mut open = Vec::new();
        for (count, leaving) in LEAVINGS.into_iter().enumerate() {
            let what = format!("{moment:?} {leaving:?}");
            let gate = Gate::new();
            upstream.push(moment.answer(dialect, &gate));
            let call = moment
                .reach(dialect, &gateway, &gate, leaving.protocol())
                .await;
            open.extend(call.leave(leaving).await);
            missed(&gateway, count + 1).await;
            // Its slots stay held while the provider works for it.
            for slot in ["user", "account"] {
                let held = gateway.metric(&format!("slots_held{{slot=\"{slot}\"}}"));
                assert_eq!(held, 1.0, "{what}");
            }
            gate.open();
            let records = gateway.wait_records(count + 1).await;
            for record in records {
                assert_left(&record, "reported", OUTPUT, &what);
                assert_eq!(record["charge"], dialect.charge(), "{what}");
            }
        }
        upstream.wait_idle().await;
        assert!(
            upstream
                .requests()
                .iter()
                .all(|seen| seen.answered && !seen.peer_left)
        );
        let left = match dialect {
            Dialect::Responses => "9.9995725",
            Dialect::Messages => "9.99526",
        };
        assert_eq!(gateway.balance("alice"), left);
    }
}

in_each_dialect!(an_aborted_answer_is_given_up_at_once);
async fn an_aborted_answer_is_given_up_at_once(dialect: Dialect) {
    for moment in MOMENTS {
        let upstream = FakeUpstream::start().await;
        let gateway = watching(dialect, Setup::with(&[&upstream]))
            .set("GATEWAY__ON_CLIENT_DISCONNECT", "abort")
            .start()
            .await;
        let mut open = Vec::new();
        for (count, leaving) in LEAVINGS.into_iter().enumerate() {
            let what = format!("{moment:?} {leaving:?}");
            let gate = Gate::new();
            upstream.push(moment.answer(dialect, &gate));
            let call = moment
                .reach(dialect, &gateway, &gate, leaving.protocol())
                .await;
            open.extend(call.leave(leaving).await);
            // The gate stays shut: the provider sees that nobody waits any more.
            upstream
                .wait_for(&format!("{what}: to be given up"), |seen| {
                    seen.iter().filter(|r| r.peer_left).count() == count + 1
                })
                .await;
            let records = gateway.wait_records(count + 1).await;
            for record in records {
                moment.assert_known(dialect, &record, &what);
            }
            for slot in ["user", "account"] {
                gateway
                    .wait_metric(&format!("slots_held{{slot=\"{slot}\"}}"), 0.0)
                    .await;
            }
        }
    }
}

in_each_dialect!(reading_on_is_bounded);
async fn reading_on_is_bounded(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream]))
        .set("GATEWAY__DRAIN_TIMEOUT_MS", 300)
        .start()
        .await;
    for (count, leaving) in [Leaving::Fin, Leaving::StreamReset].into_iter().enumerate() {
        let gate = Gate::new();
        upstream.push(Moment::InTheStream.answer(dialect, &gate));
        let call = Moment::InTheStream
            .reach(dialect, &gateway, &gate, leaving.protocol())
            .await;
        let open = call.leave(leaving).await;
        upstream
            .wait_for("to be given up", |seen| {
                seen.iter().filter(|r| r.peer_left).count() == count + 1
            })
            .await;
        for record in gateway.wait_records(count + 1).await {
            assert_left(&record, "estimated", 4, "the deadline");
        }
        drop(open);
    }
}

in_each_dialect!(a_provider_that_fails_meanwhile_is_not_replaced);
async fn a_provider_that_fails_meanwhile_is_not_replaced(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::new(&vec![upstream.url(); 9]))
        .start()
        .await;
    let cut = || Answer::sse(dialect.cut("r", &[TEXT]));
    let preamble = || Answer::sse(dialect.preamble("r"));
    let held = dialect.preamble("r").len();
    type Make<'a> = &'a dyn Fn(&Gate) -> Answer;
    let rows: [(&str, Make<'_>, Moment); 4] = [
        (
            "an error",
            &|gate| dialect.error(500, "x").after(gate),
            Moment::BeforeTheHeader,
        ),
        (
            "a reset before",
            &|gate| Answer::reset().after(gate),
            Moment::BeforeTheHeader,
        ),
        (
            "a reset in the preamble",
            &|gate| preamble().gated(held, gate).then_reset(),
            Moment::InThePreamble,
        ),
        (
            "a reset in the stream",
            &|gate| cut().gated(begun(dialect), gate).then_reset(),
            Moment::InTheStream,
        ),
    ];
    let mut count = 0;
    let mut judged = HashSet::new();
    let mut open = Vec::new();
    for (name, make, moment) in rows {
        for leaving in [Leaving::Fin, Leaving::ConnectionLost] {
            let gate = Gate::new();
            upstream.push(make(&gate));
            let call = moment
                .reach(dialect, &gateway, &gate, leaving.protocol())
                .await;
            open.extend(call.leave(leaving).await);
            count += 1;
            missed(&gateway, count).await;
            gate.open();
            let records = gateway.wait_records(count).await;
            // Its record is the new one.
            for record in &records {
                if judged.insert(record["request_id"].to_string()) {
                    moment.assert_known(dialect, record, name);
                }
            }
            assert!(records.iter().all(|r| r["account_switches"] == 0), "{name}");
        }
    }
    assert_eq!(upstream.total(), count as u64);
}

in_each_dialect!(a_provider_that_stalls_meanwhile_is_given_up);
async fn a_provider_that_stalls_meanwhile_is_given_up(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream]))
        .set("GATEWAY__STALL_TIMEOUT_MS", 400)
        .start()
        .await;
    let gate = Gate::new();
    upstream.push(Moment::InTheStream.answer(dialect, &gate));
    let call = Moment::InTheStream
        .reach(dialect, &gateway, &gate, Protocol::H1)
        .await;
    call.leave(Leaving::Fin).await;
    assert_left(&gateway.only_record().await, "estimated", 4, "a stall");
}

in_each_dialect!(an_http2_provider_is_read_to_its_end_as_well);
async fn an_http2_provider_is_read_to_its_end_as_well(dialect: Dialect) {
    let ca = TestCa::new();
    let upstream = FakeUpstream::start_tls(&ca).await;
    let folder = tempfile::tempdir().unwrap();
    ca.write(folder.path()).unwrap();
    for drain in [true, false] {
        let gateway = watching(dialect, Setup::with(&[&upstream]))
            .env("SSL_CERT_FILE", folder.path().join("ca.pem").display())
            .set(
                "GATEWAY__ON_CLIENT_DISCONNECT",
                if drain { "drain" } else { "abort" },
            )
            .start()
            .await;
        let mut open = Vec::new();
        for (count, (moment, leaving)) in [
            (Moment::BeforeTheHeader, Leaving::Fin),
            (Moment::InTheStream, Leaving::Rst),
            (Moment::InTheStream, Leaving::StreamReset),
            (Moment::InTheJson, Leaving::ConnectionLost),
        ]
        .into_iter()
        .enumerate()
        {
            let gate = Gate::new();
            upstream.push(moment.answer(dialect, &gate));
            let call = moment
                .reach(dialect, &gateway, &gate, leaving.protocol())
                .await;
            open.extend(call.leave(leaving).await);
            missed(&gateway, count + 1).await;
            if drain {
                gate.open();
            }
            let records = gateway.wait_records(count + 1).await;
            if drain {
                for record in records {
                    assert_left(&record, "reported", OUTPUT, &format!("{moment:?}"));
                }
            } else {
                upstream
                    .wait_for("the stream's end", |seen| {
                        seen.iter().filter(|r| r.peer_left).count() == count + 1
                    })
                    .await;
            }
        }
        assert!(upstream.requests().iter().all(|r| r.version == http_2()));
    }
    assert_eq!(upstream.connections(), 2, "one connection serves them all");
}

fn http_2() -> http::Version {
    http::Version::HTTP_2
}

/// More than all the buffers between provider and client hold.
fn large_frames(dialect: Dialect) -> Vec<Bytes> {
    let large = "x".repeat(1 << 20);
    let mut frames = dialect.cut("r", &[large.as_str(); 16]);
    // Its end is that of a short one, which repeats little.
    let end = dialect.cut("r", &["x"]).len();
    frames.extend(dialect.stream("r", &["x"]).split_off(end));
    frames
}

in_each_dialect!(a_reader_that_stops_is_read_for_to_the_end);
async fn a_reader_that_stops_is_read_for_to_the_end(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream]))
        .set("GATEWAY__STALL_TIMEOUT_MS", 1000)
        .start()
        .await;
    let frames = large_frames(dialect);
    for (count, protocol) in crate::call::PROTOCOLS.into_iter().enumerate() {
        upstream.push(Answer::sse(frames.clone()));
        let mut call = Call::send(&gateway, protocol, &dialect.streamed(dialect.model())).await;
        call.head().await.unwrap();
        // And no further. The connection stays open.
        let records = tokio::time::timeout(LIMIT, gateway.wait_records(count + 1));
        for record in records.await.unwrap() {
            assert_left(&record, "reported", OUTPUT, &format!("{protocol:?}"));
        }
        drop(call);
    }
}

in_each_dialect!(a_slow_reader_gets_everything);
async fn a_slow_reader_gets_everything(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream]))
        .set("GATEWAY__STALL_TIMEOUT_MS", 1500)
        .start()
        .await;
    let frames = large_frames(dialect);
    let whole: usize = frames.iter().map(Bytes::len).sum();
    for protocol in crate::call::PROTOCOLS {
        upstream.push(Answer::sse(frames.clone()));
        let mut call = Call::send(&gateway, protocol, &dialect.streamed(dialect.model())).await;
        call.head().await.unwrap();
        // It pauses long, but never as long as the limit; its pauses add up to more.
        let mut read = 0;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let wanted = read + (3 << 20);
            while read < wanted {
                read += call.chunk().await.unwrap().unwrap().len();
            }
        }
        let (rest, end) = call.rest().await;
        end.unwrap();
        assert_eq!(read + rest.len(), whole, "{protocol:?}");
    }
    for record in gateway.wait_records(2).await {
        assert_eq!(record["outcome"], "ok", "{record:#}");
        assert_eq!(record["usage_source"], "reported");
    }
}

in_each_dialect!(other_streams_of_a_connection_go_on);
async fn other_streams_of_a_connection_go_on(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = watching(dialect, Setup::with(&[&upstream])).start().await;
    let mut client = tollgate_test_support::H2Client::connect(gateway.address)
        .await
        .unwrap();
    let gate = Gate::new();
    upstream.push(Moment::InTheStream.answer(dialect, &gate));
    let leaving = client
        .send_request(&dialect.streamed(dialect.model()))
        .await
        .unwrap();
    gate.wait_reached(1).await;
    upstream.push(whole_json(dialect));
    let staying = client
        .request(&dialect.plain(dialect.model()))
        .await
        .unwrap();
    assert_eq!(staying.status, 200);
    leaving.reset();
    missed(&gateway, 1).await;
    upstream.push(whole_json(dialect));
    let staying = client
        .request(&dialect.plain(dialect.model()))
        .await
        .unwrap();
    assert_eq!(staying.status, 200);
    gate.open();
    let records = gateway.wait_records(3).await;
    let gone = records.iter().filter(|r| r["outcome"] == "client_gone");
    assert_eq!(gone.count(), 1);
}
