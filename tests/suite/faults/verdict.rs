//! The verdict: what the clients were told and what the provider saw, against what is on record.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use tollgate::domain::Money;
use tollgate_test_support::Received;

use super::clients::{End, Told};
use super::provider::{self, Fate, PerToken};
use super::{BALANCE, Done, GROUPS, SUBSCRIPTION, USERS, user_name};
use crate::dialect::Dialect;
use crate::harness::Gateway;

/// Breaches shown in full; of more only the number is told.
const SHOWN: usize = 20;

/// Compares everything with everything; panics when something is wrong, after saying what.
pub(super) fn judge(
    gateway: &Gateway,
    seed: u64,
    told: &[Told],
    requests: Vec<Received>,
    done: &Done,
) {
    let records = gateway.records();
    let seen: HashSet<&str> = requests.iter().map(provider::id_of).collect();
    let mut verdict = Verdict::default();
    let by_client = verdict.index(&records);
    let known: HashSet<&str> = told.iter().map(|told| told.id.as_str()).collect();
    for id in by_client.keys().filter(|id| !known.contains(*id)) {
        verdict.breach("a record of nobody", (*id).to_owned());
    }
    for told in told {
        let record = by_client.get(told.id.as_str()).copied();
        verdict.request(seed, told, record, seen.contains(told.id.as_str()));
    }
    for user in 0..USERS {
        verdict.balance(gateway, user, done.credited[user], &records);
    }
    verdict.quotas(gateway, &records);
    verdict.commands(gateway);
    verdict.troubles(gateway, done);
    println!("{done:?}");
    for (what, count) in &verdict.counts {
        println!("{count:8} {what}");
    }
    for (kind, breaches) in &verdict.breaches {
        println!("BREACH, {} times: {kind}", breaches.len());
        for breach in breaches.iter().take(SHOWN) {
            println!("    {breach}");
        }
    }
    assert!(verdict.breaches.is_empty(), "breaches, as said above");
    let count = |what: &str| verdict.counts.get(what).copied().unwrap_or_default();
    assert!(
        count("answered") * 2 > told.len() as u64,
        "hardly any answer"
    );
    assert!(
        count("left") * 10 > told.len() as u64,
        "hardly anybody left"
    );
}

#[derive(Default)]
struct Verdict {
    counts: BTreeMap<String, u64>,
    breaches: BTreeMap<&'static str, Vec<String>>,
}

impl Verdict {
    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    fn breach(&mut self, kind: &'static str, what: String) {
        self.breaches.entry(kind).or_default().push(what);
    }

    /// The records by the id of the client: there is at most one for each.
    fn index<'a>(&mut self, records: &'a [Value]) -> HashMap<&'a str, &'a Value> {
        let mut ids = HashSet::new();
        let mut by_client = HashMap::new();
        for record in records {
            if !ids.insert(text(record, "request_id")) {
                self.breach("a request id twice", record.to_string());
            }
            let before = by_client.insert(text(record, "client_request_id"), record);
            if before.is_some() {
                self.breach("two records of a request", record.to_string());
            }
            self.count(format!(
                "record {}, {}",
                text(record, "outcome"),
                text(record, "usage_source")
            ));
        }
        by_client
    }

    fn request(&mut self, seed: u64, told: &Told, record: Option<&Value>, was_seen: bool) {
        let fate = Fate::of(seed, &told.id);
        self.count(match &told.end {
            End::Whole(_) => "answered".to_owned(),
            End::Refused(status, says) => format!("refused: {status} {says}"),
            End::Failed(says) => format!("failed: {says}"),
            End::Broken => "broken".to_owned(),
            End::Left => "left".to_owned(),
        });
        let what = || format!("{} {:?} stream={}", told.id, told.end, told.is_stream);
        if let End::Refused(status, _) = told.end
            && !matches!(status, 502 | 503)
        {
            // There is money enough, and no limit.
            self.breach("refused for no reason", what());
        }
        let Some(record) = record else {
            match (&told.end, was_seen) {
                (End::Whole(_), _) => self.breach("an answer without a record", what()),
                (_, true) => self.breach("sent upstream, and no record", what()),
                (_, false) => {}
            }
            return;
        };
        let whole = || format!("{}: {record}", what());
        if let End::Whole(request_id) = &told.end {
            let is_exact = record["request_id"] == **request_id
                && record["outcome"] == "ok"
                && record["status"] == 200
                && record["client_disconnected"] == false;
            if !is_exact {
                self.breach("an answer with another's record", whole());
            }
            if record["usage_source"] != "reported" {
                self.breach("an answer whose usage is not the reported one", whole());
            }
        } else if record["outcome"] == "ok" && !matches!(told.end, End::Broken | End::Left) {
            // Whoever broke off may have missed no more than the last bytes.
            self.breach("a failure recorded as an answer", whole());
        }
        if !was_seen {
            // It was about to be sent, and nobody can tell any more whether it was.
            self.count("recorded, and not seen by the provider");
            if !matches!(told.end, End::Broken | End::Left) {
                self.breach("a record of what never reached a provider", whole());
            }
        }
        self.money(told, record, &fate, was_seen);
    }

    /// Whether tokens, cost and charge are what they must be.
    fn money(&mut self, told: &Told, record: &Value, fate: &Fate, was_seen: bool) {
        let whole = || format!("{} {:?}: {record}", told.id, told.end);
        let (group, multiplier, dialect) = GROUPS[told.group];
        let tokens = TOKENS.map(|field| record[field].as_u64().unwrap());
        let reported = fate.reported(dialect);
        match text(record, "usage_source") {
            "reported" if !was_seen => self.breach("reported by nobody", whole()),
            "reported" if tokens != reported => self.breach("other tokens than reported", whole()),
            "reported" => {}
            "estimated" if !is_seen(dialect, told, fate, tokens) => {
                self.breach("an estimate beyond what was sent", whole());
            }
            "estimated" => {}
            "none" if told.shown => {
                self.breach("text was shown, and nothing is estimated", whole())
            }
            "none" if tokens != [0; 5] => self.breach("tokens from nowhere", whole()),
            "none" => {}
            _ => self.breach("an unknown source of usage", whole()),
        }
        let cost = provider::cost(dialect, tokens);
        if money(record, "cost") != cost {
            self.breach("another cost than that of its tokens", whole());
        }
        if money(record, "charge") != provider::charge(cost, multiplier) {
            self.breach("another charge than cost × multiplier", whole());
        }
        let pays = match group {
            SUBSCRIPTION => "subscription",
            _ => "balance",
        };
        if record["group"] != group || record["billing_type"] != pays {
            self.breach("another's bill", whole());
        }
        if record["user"] != *user_name(told.user) {
            self.breach("another user's record", whole());
        }
    }

    fn balance(&mut self, gateway: &Gateway, user: usize, credited: i64, records: &[Value]) {
        let name = user_name(user);
        let shown = gateway.run_json(&["users", "show", &name, "--json"]);
        let charged: Money = records
            .iter()
            .filter(|record| record["user"] == *name && record["billing_type"] == "balance")
            .map(|record| money(record, "charge"))
            .sum();
        let expected = Money::from_usd(BALANCE) + Money(credited) - charged;
        if money(&shown, "balance") != expected {
            let what = format!("{name} has {}, expected {expected}", shown["balance"]);
            self.breach("a balance that is not the sum", what);
        }
        let reserved = shown["reserved"].as_str().unwrap_or("0");
        if reserved.parse::<Money>() != Ok(Money::ZERO) {
            self.breach("money still held", format!("{name}: {reserved}"));
        }
    }

    /// What each key has spent is the sum of its charges, whoever pays them.
    fn quotas(&mut self, gateway: &Gateway, records: &[Value]) {
        let mut spent: HashMap<&str, Money> = HashMap::new();
        for record in records {
            *spent.entry(text(record, "api_key")).or_default() += money(record, "charge");
        }
        let keys = gateway.run_json(&["keys", "list", "--json"]);
        for key in keys.as_array().unwrap() {
            let expected = spent.remove(text(key, "name")).unwrap_or_default();
            if money(key, "quota_used") != expected {
                self.breach("a quota that is not the sum", format!("{key}, {expected}"));
            }
        }
        for key in spent.keys() {
            self.breach("a key that there is not", (*key).to_owned());
        }
    }

    /// How the server took what was done to it.
    fn troubles(&mut self, gateway: &Gateway, done: &Done) {
        for trouble in &done.stuck {
            let what = "the database is not written any more after it";
            self.breach(what, (*trouble).to_owned());
        }
        for _ in done.refused_when_full.iter().filter(|count| **count == 0) {
            let what = "nobody was refused though nothing more could be journalled";
            self.breach(what, String::new());
        }
        let complains = |line: &str| {
            line.contains("journal") && (line.contains("ERROR") || line.contains("WARN"))
        };
        if !done.refused_when_full.is_empty() && !gateway.logged().lines().any(complains) {
            self.breach("a full disk, and no word of it in the log", String::new());
        }
    }

    /// The program's own checks, where it has them.
    fn commands(&mut self, gateway: &Gateway) {
        for command in [["ledger", "verify"], ["journal", "inspect"]] {
            let [noun, verb] = command;
            let help = gateway.try_run(&[noun, verb, "--help"], "");
            if !help.status.success() {
                println!("LEFT OUT: tollgate {noun} {verb}, which there is not");
                continue;
            }
            let output = gateway.try_run(&command, "");
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                self.breach(
                    "a check of the program's own",
                    format!("{command:?}: {said}"),
                );
            }
        }
    }
}

/// The fields of a record that are [`PerToken`].
const TOKENS: [&str; 5] = [
    "input_tokens",
    "cache_read_tokens",
    "output_tokens",
    "cache_creation_5m_tokens",
    "cache_creation_1h_tokens",
];

/// Whether an estimate says no more than what was sent to and fro: a token is at least a byte, and what might have been
/// reserved is far more.
fn is_seen(dialect: Dialect, told: &Told, fate: &Fate, tokens: PerToken) -> bool {
    let [input, cached, output, short, long] = tokens;
    let reported = fate.reported(dialect);
    let guessed = input <= told.body_bytes && [cached, short, long] == [0; 3];
    // A message begins with its exact input and one token of output.
    let begun = [reported[0], reported[1], output, reported[3], reported[4]] == tokens;
    let shown = output <= fate.text_bytes();
    match dialect {
        Dialect::Responses => guessed && shown,
        // Just before its end it has said all, though the server may not have lived to see the end.
        Dialect::Messages => guessed && shown || begun && (shown || tokens == reported),
    }
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}

fn money(record: &Value, field: &str) -> Money {
    text(record, field).parse().unwrap()
}
