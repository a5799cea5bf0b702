//! What is known of one request while it is served. What it holds, it holds as guards: a dropped
//! task or a panic gives everything back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use http::HeaderValue;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tollgate_filters::intercept::Intercept;
use tollgate_filters::reply::ErrorReply;
use tollgate_filters::route::Dialect;
use tollgate_filters::verdict::Effect;

use super::Rooms;
use super::answer::Addressee;
use super::attempt::Attempt;
use super::downstream::WayBack;
use super::exchange::{Exchange, Failure};
use super::failover::retry_pause;
use super::snapshot::Snapshot;
use crate::auth::Principal;
use crate::billing::bound::Demand;
use crate::billing::quote::Quote;
use crate::config::Config;
use crate::domain::{Account, AccountId, ApiKey, AttemptTrace, Group, UserId};
use crate::scheduler::retry::{Failed, Tried, same_account};
use crate::state::{Lease, Ticket};

/// Makes request ids: unique in time and across processes, without a system call each.
#[derive(Debug)]
pub struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// Ids of this process begin with `process`, which must be random.
    pub fn new(process: u64) -> RequestIds {
        RequestIds {
            process,
            next: AtomicU64::new(0),
        }
    }

    /// The next id, and a number that is another for each, for choices left to chance.
    pub fn next(&self) -> (String, u64) {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        // By hand, since every request makes one.
        let mut id = String::with_capacity(28);
        id.push_str("req_");
        push_hex(&mut id, self.process, 16);
        // A process that makes more than 2³² has longer ones.
        let digits = (64 - count.leading_zeros()).div_ceil(4).max(8);
        push_hex(&mut id, count, digits);
        // Multiplied by the golden ratio, neighbours are far apart.
        (id, self.process ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// The last so many hexadecimal digits of a number.
fn push_hex(text: &mut String, number: u64, digits: u32) {
    for digit in (0..digits).rev() {
        let nibble = (number >> (digit * 4)) & 0xf;
        text.push(char::from(b"0123456789abcdef"[nibble as usize]));
    }
}

/// What was read of the client's request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The endpoint as it stands in records, e.g. `/v1/responses`.
    pub endpoint: &'static str,
    /// What followed it in the path.
    pub subpath: String,
    /// Only its tokens are counted: it takes no slot and leaves no record.
    pub counts: bool,
    /// The model, as the client wrote it.
    pub requested_model: String,
    /// What the group's channel calls it; without one the same. Accounts are chosen by this name.
    pub model: String,
    /// Where the body names it.
    pub model_spans: Vec<Range<usize>>,
    /// Where the body limits the output.
    pub output_limit_spans: Vec<Range<usize>>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Conversation affinity.
    pub sticky_key: Option<u128>,
    /// The conversation as one of those that an account carries at once: the same key where it holds from turn
    /// to turn. One that is another for each request would count every turn as a conversation.
    pub session: Option<u128>,
    /// The response this one goes on from.
    pub previous_response: Option<u128>,
    /// Service tier asked for.
    pub service_tier: Option<String>,
    /// Reasoning effort asked for.
    pub reasoning_effort: Option<String>,
    /// A user has written the last of its messages: it is not a program that goes on with what was begun.
    pub is_message: bool,
    /// Bytes of the decoded body.
    pub body_len: usize,
    /// What bounds its price.
    pub demand: Demand,
    /// It can be answered without a model, if its account wants that.
    pub intercept: Option<Intercept>,
}

/// What has been tried so far.
#[derive(Debug, Default)]
pub struct Tries {
    /// Attempts begun.
    pub attempts: u32,
    /// Changes of account, in the group that the request is in.
    pub switches: u32,
    /// Changes before those: of account in the group it came from, and the one of group.
    pub switches_before: u32,
    /// The group that it goes on in.
    pub to_group: Option<Arc<Group>>,
    /// Accounts that failed this request.
    pub excluded: Vec<AccountId>,
    /// Which account failed last, and how.
    pub last: Option<(Arc<Account>, Failure)>,
    /// The account to be tried again next.
    pub again: Option<RetryHere>,
    /// The slot of that account, where it was kept for it.
    pub kept: Option<Lease>,
    /// How often each account has been tried again, in the whole request.
    pub retried: Vec<(AccountId, u32)>,
    /// The same because a refusal might pass, and since when.
    pub passing: Vec<(AccountId, u32, Instant)>,
    /// The account that served the request, and since when the attempt ran.
    pub served: Option<AccountId>,
    /// When that attempt began.
    pub served_since: DateTime<Utc>,
    /// The account its conversation is bound to has been waited for.
    pub waited_for_bound: bool,
    /// Whether its conversation was bound to an account before it came; `None` = not looked yet.
    pub was_bound: Option<bool>,
    /// Every attempt that has ended.
    pub trail: Vec<AttemptTrace>,
    /// Tries again after a kept-alive connection turned out to be dead.
    pub stale_connections: u32,
    /// Time spent waiting for accounts, over all attempts.
    pub waited: Duration,
    /// Time spent in accounts' queues of messages, over all attempts.
    pub queued: Duration,
    /// The place in the waiting lines.
    pub ticket: Option<Ticket>,
    /// Slots of failed attempts, until their accounts' cool-downs are set.
    pub leases: Vec<Lease>,
    /// What attempts mean for their accounts, until the next hook that can wait sets it.
    pub effects: Vec<AccountEffect>,
    /// What the record says of the last attempt whose request was sent upstream.
    pub sent: Option<SentAttempt>,
}

/// What an attempt means for its account.
#[derive(Clone, Debug)]
pub struct AccountEffect {
    /// The account.
    pub account: Arc<Account>,
    /// What the upstream's answer means for it.
    pub effect: Effect,
    /// The upstream's status, if it answered.
    pub status: Option<u16>,
    /// The model asked for.
    pub model: Arc<Asked>,
    /// There was no answer: nothing but the connection has failed.
    pub transport: bool,
}

/// Tries again on one account.
#[derive(Clone, Copy, Debug)]
pub struct RetryHere {
    /// The account.
    pub account: AccountId,
    /// The pause before the next try, while it is still to come.
    pub pause: Option<Duration>,
}

/// What stays of an attempt whose request was sent.
#[derive(Clone, Debug)]
pub struct SentAttempt {
    /// The account.
    pub account: Arc<Account>,
    /// The model's name there.
    pub upstream_model: String,
    /// The path there.
    pub path: String,
}

impl Tries {
    /// The next try is on the same account, at once.
    pub fn at_once_here(&mut self, account: &Account) {
        self.again = Some(RetryHere {
            account: account.id,
            pause: None,
        });
    }

    /// The next try is on the same account, whose refusal may pass; the first that did began at `began`.
    pub fn wait_here(&mut self, account: &Account, began: Instant) {
        let pause = self.passing_pause(account);
        match self.passing.iter_mut().find(|(id, ..)| *id == account.id) {
            Some((_, count, _)) => *count += 1,
            None => self.passing.push((account.id, 1, began)),
        }
        self.again = Some(RetryHere {
            account: account.id,
            pause,
        });
    }

    /// How long to wait before an account is asked again whose refusal may pass; `None` = it is not.
    pub fn passing_pause(&self, account: &Account) -> Option<Duration> {
        let tried = self.passing.iter().find(|(id, ..)| *id == account.id);
        let (passing, passing_for) = tried.map_or_else(Default::default, |(_, count, since)| {
            (*count, since.elapsed())
        });
        let tried = Tried {
            passing,
            passing_for,
            ..Tried::default()
        };
        same_account(&account.error_policy, Failed::Passing, tried)
    }

    /// The request goes on in another group, whose accounts have not been tried.
    pub fn begin_anew(&mut self) {
        self.switches_before += self.switches + 1;
        self.switches = 0;
        self.again = None;
        self.waited_for_bound = false;
        self.was_bound = None;
    }

    /// Changes of account in the whole request.
    pub fn all_switches(&self) -> u32 {
        self.switches_before + self.switches
    }

    /// The next try is on the same account.
    pub fn retry_here(&mut self, account: &Account) {
        let count = self.retries_of(account.id);
        match self.retried.iter_mut().find(|(id, _)| *id == account.id) {
            Some((_, count)) => *count += 1,
            None => self.retried.push((account.id, 1)),
        }
        self.again = Some(RetryHere {
            account: account.id,
            pause: retry_pause(account, count),
        });
    }

    /// The next try is on another account.
    pub fn go_elsewhere(&mut self, failed: AccountId) {
        self.excluded.push(failed);
        self.again = None;
        self.switches += 1;
    }

    /// How often `account` has been tried again in this request.
    pub fn retries_of(&self, account: AccountId) -> u32 {
        let retried = self.retried.iter().find(|(id, _)| *id == account);
        retried.map_or(0, |(_, count)| *count)
    }

    /// Remembers an attempt, if its request was sent.
    pub fn note(&mut self, attempt: &Attempt) {
        if attempt.sent {
            self.sent = Some(attempt.as_sent());
        }
    }
}

/// Moments of a request, for the latencies of SPEC 14.1.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Arrival.
    pub started: Instant,
    /// Read and checked, ready to wait for the user's slot.
    pub ready: Option<Instant>,
    /// The last attempt began.
    pub attempt: Option<Instant>,
}

/// Counts a request as running while it lives.
pub struct Running(IntGauge);

impl Running {
    /// Counts one more.
    pub fn new(gauge: &IntGauge) -> Running {
        gauge.inc();
        Running(gauge.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One request.
pub struct Context {
    /// The rooms, for what has to be done even when the task is dropped.
    pub rooms: Arc<Rooms>,
    /// Our id, also the response header `x-request-id`.
    pub id: String,
    /// For choices left to chance.
    pub chance: u64,
    /// When it arrived.
    pub arrived: DateTime<Utc>,
    /// Moments on the way.
    pub moments: Moments,
    /// The configuration that this request sees throughout.
    pub config: Arc<Config>,
    /// The picture of accounts and keys that this request sees throughout.
    pub snapshot: Arc<Snapshot>,
    /// Bounded label of the endpoint.
    pub endpoint: &'static str,
    /// What errors look like.
    pub dialect: Dialect,
    /// The client's own request id.
    pub client_request_id: Option<String>,
    /// The client's address, as far as it is trusted.
    pub ip: Option<std::net::IpAddr>,
    /// The client's user agent, cut.
    pub user_agent: Option<String>,
    /// Who asks.
    pub principal: Option<Principal>,
    /// The group the request came to, where another one serves it.
    pub fallback_from: Option<Arc<Group>>,
    /// The key that was presented, where it is known but was refused.
    pub refused_key: Option<Arc<ApiKey>>,
    /// What is asked.
    pub asked: Option<Arc<Asked>>,
    /// What it is billed for.
    pub quote: Option<Arc<Quote>>,
    /// Between client and upstream.
    pub exchange: Option<Arc<Mutex<Exchange>>>,
    /// How the real session comes back.
    pub way_back: Option<WayBack>,
    /// The user's slot.
    pub user_lease: Option<Lease>,
    /// The attempt under way.
    pub attempt: Option<Attempt>,
    /// What has been tried.
    pub tries: Tries,
    /// The client's final error, once it is decided.
    pub last_word: Option<ErrorReply>,
    /// It is answered here, in place of an account.
    pub intercepted: Option<Intercept>,
    /// Status of a reply we gave before there was an exchange; 0 = none.
    pub early_status: u16,
    /// Methods that the path takes, when the client used another.
    pub allow: Option<&'static str>,
    /// The client left while nothing was under way upstream.
    pub client_left: bool,
    /// The answer was cut short after its first byte was released.
    pub cut: bool,
    /// The request has been recorded.
    pub finished: bool,
    running: Running,
}

impl Context {
    /// A request that has just arrived.
    pub fn new(rooms: Arc<Rooms>) -> Context {
        let running = Running::new(&rooms.metrics.in_flight);
        let (id, chance) = rooms.ids.next();
        Context {
            id,
            chance,
            arrived: Utc::now(),
            moments: Moments {
                started: Instant::now(),
                ready: None,
                attempt: None,
            },
            config: rooms.config.load_full(),
            snapshot: rooms.snapshot.load_full(),
            endpoint: "none",
            dialect: Dialect::OpenAi,
            client_request_id: None,
            ip: None,
            user_agent: None,
            principal: None,
            fallback_from: None,
            refused_key: None,
            asked: None,
            quote: None,
            exchange: None,
            way_back: None,
            user_lease: None,
            attempt: None,
            tries: Tries::default(),
            last_word: None,
            intercepted: None,
            early_status: 0,
            allow: None,
            client_left: false,
            cut: false,
            finished: false,
            running,
            rooms,
        }
    }

    /// The id as a header value.
    pub fn id_header(&self) -> HeaderValue {
        // Made of hexadecimal digits only.
        HeaderValue::from_str(&self.id).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
    }

    /// Who is answered.
    pub fn addressee(&self) -> Addressee {
        Addressee {
            dialect: self.dialect,
            request_id: self.id_header(),
        }
    }

    /// This request's place in the waiting lines, taken at its first wait.
    pub fn ticket(&mut self) -> Ticket {
        let user = self.principal.as_ref().map_or(UserId(0), |p| p.user.id);
        let state = &self.rooms.state;
        *self.tries.ticket.get_or_insert_with(|| state.ticket(user))
    }

    /// Whether the client has left.
    pub fn is_client_gone(&self) -> bool {
        self.client_left
            || self
                .exchange
                .as_ref()
                .is_some_and(|exchange| exchange.lock().is_client_gone())
    }
}

impl Drop for Context {
    /// Pingora does not call `logging` for a request whose task panics or is cut at shutdown: what
    /// was sent upstream is recorded all the same.
    fn drop(&mut self) {
        if !self.finished {
            self.cut = true;
            super::finish::finish(self);
        }
        let _ = &self.running;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_the_process_and_a_count() {
        let ids = RequestIds::new(0xfe);
        assert_eq!(ids.next().0, "req_00000000000000fe00000000");
        for count in [0x1a, 0xffff_ffff, 0x12_3456_789a] {
            ids.next.store(count, Ordering::Relaxed);
            let expected = format!("req_{:016x}{count:08x}", 0xfe);
            assert_eq!(ids.next().0, expected);
        }
    }
}
