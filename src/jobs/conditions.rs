//! Keeps what live state has to remember beyond a restart: the accounts' conditions, strikes and session
//! windows, and which account made which response. Written behind the requests' backs, a moment later.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;

use super::metrics::JobMetrics;
use crate::domain::account::seen_window::SeenWindow;
use crate::domain::{AccountId, Condition, Conditions, Directory, ResponseBinding};
use crate::state::{LiveState, StateError};
use crate::storage::{ConditionChanges, StorageError, Store};

/// Between looks at the live state: what happened since is what a crash forgets.
const INTERVAL: Duration = Duration::from_millis(250);
/// Bindings in one transaction: enough to share its cost, few enough to let others write.
const BATCH: usize = 1_000;
/// Bindings brought back: as many as the live state holds.
const MAX_RESPONSES: u32 = 200_000;
/// Bindings kept. A response stands there once for its making and once for every time it was used, which is
/// twice in a conversation that goes on from each of its answers. Some 16 MB of the database when full.
const KEPT_RESPONSES: u32 = 2 * MAX_RESPONSES;
/// How long a binding is kept after its last use: OpenAI keeps stored responses for 30 days.
const RESPONSE_LIFE: TimeDelta = TimeDelta::days(30);
/// Strikes are brought back for this long: a day is far beyond the window of any rule.
const STRIKE_LIFE: TimeDelta = TimeDelta::days(1);
/// Between removals of bindings beyond these bounds.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);
/// Between writes of how much of a session window is used, which changes with every request.
const USE_INTERVAL: Duration = Duration::from_secs(30);
/// Between tries of [`Keeper::flush`].
const PAUSE: Duration = Duration::from_millis(100);

/// Why the live state could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The live state did not take it.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The keeper. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    store: Store,
    state: Arc<dyn LiveState>,
    progress: Arc<Mutex<Progress>>,
    metrics: JobMetrics,
}

/// How far writing has come.
struct Progress {
    /// What the store holds; `None` = has to be read there, since a write may or may not have been.
    saved: Option<Arc<Conditions>>,
    /// The strikes that the store holds; `None` as above.
    strikes: Option<Vec<(AccountId, DateTime<Utc>)>>,
    /// Taken from the live state and not yet written.
    unwritten: Vec<ResponseBinding>,
    windows: WindowProgress,
    /// When bindings were last pruned.
    pruned: Instant,
    /// Whether the last try failed.
    failing: bool,
}

/// How far writing of session windows has come.
struct WindowProgress {
    saved: HashMap<AccountId, SeenWindow>,
    /// Taken from the live state and not yet written.
    unwritten: BTreeMap<AccountId, SeenWindow>,
    written_at: Instant,
}

impl WindowProgress {
    /// Whether there is something that is not only a little more use of what is known.
    fn has_news(&self) -> bool {
        let is_news = |(account, window): (&AccountId, &SeenWindow)| {
            let saved = self.saved.get(account);
            saved.is_none_or(|saved| !saved.is_as(window))
        };
        self.unwritten.iter().any(is_news)
    }
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Save {
    /// What should not be lost.
    News,
    /// Everything.
    All,
}

impl Keeper {
    /// Brings back into `state` what `store` remembers, and returns who keeps it from now on: to be
    /// called before the first request. Not brought back are conditions that have ended by `now`,
    /// and conditions and strikes that are older than what `directory` says about their account's
    /// last `accounts resume`, or whose account there is no more.
    ///
    /// # Errors
    /// [`RestoreError`] when the store cannot be read.
    pub async fn restored(
        store: Store,
        state: Arc<dyn LiveState>,
        directory: &Directory,
        metrics: JobMetrics,
        now: DateTime<Utc>,
    ) -> Result<Keeper, RestoreError> {
        let conditions = store.load_conditions().await?;
        for (account, condition) in &conditions {
            if condition.holds(now) && still_counts(*account, condition.since, directory) {
                state.set_condition(*account, condition.clone()).await?;
            }
        }
        let strikes = store.load_strikes().await?;
        for (account, at) in &strikes {
            if now - *at < STRIKE_LIFE && still_counts(*account, *at, directory) {
                state.strike(*account, STRIKE_LIFE, *at).await?;
            }
        }
        let responses = store
            .load_responses(MAX_RESPONSES, now - RESPONSE_LIFE)
            .await?;
        state.restore_responses(responses);
        let windows = store.load_session_windows().await?;
        state.restore_session_windows(windows.clone());
        Ok(Keeper {
            store,
            state,
            progress: Arc::new(Mutex::new(Progress {
                saved: Some(Arc::new(picture(conditions))),
                strikes: Some(strikes),
                unwritten: Vec::new(),
                windows: WindowProgress {
                    saved: windows.into_iter().collect(),
                    unwritten: BTreeMap::new(),
                    written_at: Instant::now(),
                },
                pruned: Instant::now(),
                failing: false,
            })),
            metrics,
        })
    }

    /// Writes what is not written yet; whether all of it is. What could not be written is tried
    /// again the next time.
    async fn save(&self, what: Save) -> bool {
        let mut progress = self.progress.lock().await;
        let conditions = self.save_conditions(&mut progress).await;
        if conditions.is_err() {
            progress.saved = None;
        }
        let strikes = self.save_strikes(&mut progress).await;
        if strikes.is_err() {
            progress.strikes = None;
        }
        let responses = self.save_responses(&mut progress).await;
        let windows = self.save_windows(&mut progress.windows, what).await;
        match conditions.and(strikes).and(responses).and(windows) {
            Ok(()) => {
                progress.failing = false;
                true
            }
            Err(error) => {
                self.metrics.live_state_write_errors.inc();
                // Once for each outage, not four times a second.
                if !std::mem::replace(&mut progress.failing, true) {
                    log::error!(
                        "what is known of accounts and responses cannot be written and is kept in \
                         memory: {error}"
                    );
                }
                false
            }
        }
    }

    async fn save_conditions(&self, progress: &mut Progress) -> Result<(), StorageError> {
        let current = self.state.conditions();
        let saved = match &progress.saved {
            Some(saved) if Arc::ptr_eq(saved, &current) => return Ok(()),
            Some(saved) => saved.clone(),
            None => Arc::new(picture(self.store.load_conditions().await?)),
        };
        let changes = ConditionChanges::between(&saved, &current);
        self.store.save_conditions(&changes).await?;
        self.metrics.conditions_written.inc_by(changes.len() as u64);
        progress.saved = Some(current);
        Ok(())
    }

    async fn save_strikes(&self, progress: &mut Progress) -> Result<(), StorageError> {
        let current = self.state.strikes();
        if progress.strikes.as_ref() != Some(&current) {
            self.store.save_strikes(&current).await?;
            progress.strikes = Some(current);
        }
        Ok(())
    }

    async fn save_responses(&self, progress: &mut Progress) -> Result<(), StorageError> {
        loop {
            if progress.unwritten.is_empty() {
                progress.unwritten = self.state.unsaved_responses(BATCH);
            }
            let count = progress.unwritten.len();
            self.store.save_responses(&progress.unwritten).await?;
            self.metrics.responses_written.inc_by(count as u64);
            progress.unwritten.clear();
            if count < BATCH {
                return Ok(());
            }
        }
    }

    async fn save_windows(
        &self,
        progress: &mut WindowProgress,
        what: Save,
    ) -> Result<(), StorageError> {
        progress
            .unwritten
            .extend(self.state.unsaved_session_windows());
        let is_due = what == Save::All
            || progress.has_news()
            || progress.written_at.elapsed() >= USE_INTERVAL;
        if !is_due || progress.unwritten.is_empty() {
            return Ok(());
        }
        self.store.save_session_windows(&progress.unwritten).await?;
        let written = std::mem::take(&mut progress.unwritten);
        progress.saved.extend(written);
        progress.written_at = Instant::now();
        Ok(())
    }

    async fn prune(&self, now: DateTime<Utc>) {
        // Not under the lock: saving may go on meanwhile.
        {
            let mut progress = self.progress.lock().await;
            if progress.pruned.elapsed() < PRUNE_INTERVAL {
                return;
            }
            progress.pruned = Instant::now();
        }
        let pruned = self
            .store
            .prune_responses(KEPT_RESPONSES, now - RESPONSE_LIFE)
            .await;
        if let Err(error) = pruned {
            self.metrics.live_state_write_errors.inc();
            log::warn!("old response bindings could not be removed: {error}");
        }
    }

    /// Writes what is left, until it is done or `deadline` passes; whether it is done. To be called
    /// when the last request has ended.
    pub async fn flush(&self, deadline: Instant) -> bool {
        loop {
            if self.save(Save::All).await {
                return true;
            }
            if Instant::now() + PAUSE >= deadline {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether what began at `since` has not been lifted by an operator.
fn still_counts(account: AccountId, since: DateTime<Utc>, directory: &Directory) -> bool {
    directory
        .account(account)
        .is_some_and(|account| account.resumed_at.is_none_or(|resumed| since >= resumed))
}

fn picture(rows: Vec<(AccountId, Condition)>) -> Conditions {
    let mut conditions: HashMap<AccountId, Vec<Condition>> = HashMap::new();
    for (account, condition) in rows {
        conditions.entry(account).or_default().push(condition);
    }
    Conditions(conditions)
}

#[async_trait]
impl BackgroundService for Keeper {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                // What is left then is written by `flush`, after the last request has ended.
                _ = shutdown.changed() => return,
            }
            self.save(Save::News).await;
            self.prune(Utc::now()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_filters::verdict::SessionStatus;

    use super::*;
    use crate::config::resources::Resources;
    use crate::domain::account::seen_window::{Permille, Span};
    use crate::domain::{ConditionKind, GroupId, Multiplier, Secret};
    use crate::metrics::Metrics;
    use crate::state::memory::MemoryState;
    use crate::storage::{ApplyOptions, Names};

    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn condition(kind: ConditionKind, since: i64, until: Option<i64>) -> Condition {
        Condition {
            kind,
            model: None,
            since: at(since),
            until: until.map(at),
            status: Some(429),
            reason: "because".to_owned(),
        }
    }

    fn binding(key: u128, second: i64) -> ResponseBinding {
        ResponseBinding {
            group: GroupId(1),
            key,
            account: ONE,
            at: at(second),
        }
    }

    async fn open(dir: &tempfile::TempDir) -> Store {
        Store::open(dir.path(), &Secret::new("a secret for tests"))
            .await
            .unwrap()
    }

    /// A store with the accounts `one` and `two`.
    async fn filled() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resources.yaml");
        let text = "groups: [{name: g, platform: openai}]\naccounts:\n\
                    - {name: one, platform: openai, credentials: {api_key: k}, groups: [g]}\n\
                    - {name: two, platform: openai, credentials: {api_key: k}, groups: [g]}\n";
        std::fs::write(&file, text).unwrap();
        let (resources, _): (Resources, _) =
            crate::config::load_resources(&[file], &Default::default()).unwrap();
        let store = open(&dir).await;
        store
            .apply(&resources, ApplyOptions::default())
            .await
            .unwrap();
        (dir, store)
    }

    /// A new process on the same store.
    async fn started(store: &Store, now: DateTime<Utc>) -> (Arc<MemoryState>, Keeper) {
        let state = Arc::new(MemoryState::new());
        let directory = store.load_directory(Multiplier::ONE).await.unwrap();
        let metrics = JobMetrics::new(&Metrics::new());
        let keeper = Keeper::restored(store.clone(), state.clone(), &directory, metrics, now)
            .await
            .unwrap();
        (state, keeper)
    }

    fn kinds(state: &MemoryState, account: AccountId) -> Vec<ConditionKind> {
        let mut kinds: Vec<_> = state
            .conditions()
            .of(account)
            .iter()
            .map(|c| c.kind)
            .collect();
        kinds.sort();
        kinds
    }

    #[tokio::test]
    async fn what_holds_survives_a_restart() {
        use ConditionKind::{Error, Failing, Overloaded, RateLimited};
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        for (account, c) in [
            (ONE, condition(Error, 5, None)),
            (ONE, condition(RateLimited, 10, Some(100))),
            (ONE, condition(Overloaded, 1, Some(50))),
            (TWO, condition(Failing, 9, Some(100))),
            (TWO, condition(RateLimited, 10, Some(100))),
        ] {
            state.set_condition(account, c).await.unwrap();
        }
        assert!(keeper.save(Save::News).await);
        let written = store.load_conditions().await.unwrap();
        assert_eq!(written.len(), 5);
        assert_eq!(keeper.metrics.conditions_written.get(), 5);
        assert!(keeper.save(Save::News).await);
        assert_eq!(keeper.metrics.conditions_written.get(), 5, "once");

        // `accounts resume` while no server runs, and time passes.
        store
            .set_paused(Names::List(&["two".to_owned()]), false, at(10))
            .await
            .unwrap();
        let (state, keeper) = started(&store, at(50)).await;
        assert_eq!(kinds(&state, ONE), [RateLimited, Error]);
        assert_eq!(kinds(&state, TWO), [RateLimited]);
        let before: Vec<_> = written
            .iter()
            .filter(|(_, c)| c.holds(at(50)) && c.kind != Failing)
            .cloned()
            .collect();
        assert_eq!(state.conditions().of(TWO), [before[2].1.clone()]);

        // What was not brought back leaves the store as well.
        assert!(keeper.save(Save::News).await);
        assert_eq!(store.load_conditions().await.unwrap(), before);
        state.lift_conditions(ONE, None, at(60)).await.unwrap();
        assert!(keeper.save(Save::News).await);
        assert_eq!(store.load_conditions().await.unwrap(), before[2..]);
    }

    #[tokio::test]
    async fn a_condition_from_before_the_last_resume_is_not_brought_back() {
        let (_dir, store) = filled().await;
        store.set_paused(Names::All, false, at(10)).await.unwrap();
        // Written late by a server that had not seen it yet.
        let late = ConditionChanges {
            set: vec![
                (ONE, condition(ConditionKind::Error, 9, None)),
                (TWO, condition(ConditionKind::Error, 10, None)),
            ],
            gone: vec![],
        };
        store.save_conditions(&late).await.unwrap();
        let strikes = [(ONE, at(9)), (ONE, at(10)), (TWO, at(19))];
        store.save_strikes(&strikes).await.unwrap();
        let (state, _) = started(&store, at(20)).await;
        assert_eq!(kinds(&state, ONE), []);
        assert_eq!(kinds(&state, TWO), [ConditionKind::Error]);
        assert_eq!(state.strikes(), strikes[1..]);
        let directory = store.load_directory(Multiplier::ONE).await.unwrap();
        assert!(!still_counts(AccountId(9), at(20), &directory));
    }

    #[tokio::test]
    async fn strikes_survive_a_restart_for_a_day() {
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        let window = TimeDelta::minutes(180);
        for second in [1, 2] {
            state.strike(ONE, window, at(second)).await.unwrap();
        }
        state.strike(TWO, window, at(3)).await.unwrap();
        assert!(keeper.save(Save::News).await);
        let (state, keeper) = started(&store, at(10)).await;
        assert_eq!(state.strikes(), [(ONE, at(1)), (ONE, at(2)), (TWO, at(3))]);
        assert_eq!(state.strike(ONE, window, at(11)).await.unwrap(), 3);
        state.forgive(TWO).await.unwrap();
        assert!(keeper.save(Save::News).await);
        let (state, keeper) = started(&store, at(2) + STRIKE_LIFE).await;
        assert_eq!(state.strikes(), [(ONE, at(11))]);
        assert!(keeper.save(Save::News).await);
        assert_eq!(store.load_strikes().await.unwrap(), [(ONE, at(11))]);
    }

    #[tokio::test]
    async fn bindings_are_written_in_batches_and_brought_back() {
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        let count = 2 * BATCH as i64 + 1;
        for second in 0..count {
            let binding = binding(second as u128, second);
            state.remember_response(binding).await.unwrap();
        }
        assert!(keeper.flush(Instant::now()).await);
        assert_eq!(keeper.metrics.responses_written.get(), count as u64);
        let found = store.load_responses(u32::MAX, at(0)).await.unwrap();
        assert_eq!(found.len() as i64, count);

        // Those that are older than a binding's life stay behind.
        let (state, keeper) = started(&store, at(1) + RESPONSE_LIFE).await;
        assert!(keeper.save(Save::News).await);
        assert_eq!(keeper.metrics.responses_written.get(), 0, "saved already");
        for (key, want) in [(0, None), (1, Some(ONE)), (2000, Some(ONE)), (2001, None)] {
            let got = state.response_account(GroupId(1), key, at(count)).await;
            assert_eq!(got.unwrap(), want, "{key}");
        }
    }

    #[tokio::test]
    async fn a_failed_write_is_tried_again_with_all_that_came_meanwhile() {
        use ConditionKind::{Error, RateLimited};
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        // The database refuses a row of an account that it does not know.
        let nobody = AccountId(99);
        state
            .set_condition(nobody, condition(Error, 1, None))
            .await
            .unwrap();
        state
            .set_condition(ONE, condition(RateLimited, 1, Some(9)))
            .await
            .unwrap();
        state.remember_response(binding(7, 1)).await.unwrap();
        for failures in 1..=2 {
            assert!(!keeper.save(Save::News).await);
            assert_eq!(keeper.metrics.live_state_write_errors.get(), failures);
        }
        assert!(!keeper.flush(Instant::now()).await);
        assert!(store.load_conditions().await.unwrap().is_empty());
        let bindings = store.load_responses(9, at(0)).await.unwrap();
        assert_eq!(bindings, [binding(7, 1)], "the other table is written");

        state.lift_conditions(nobody, None, at(2)).await.unwrap();
        state
            .set_condition(ONE, condition(RateLimited, 1, Some(20)))
            .await
            .unwrap();
        assert!(keeper.save(Save::News).await);
        let want = condition(RateLimited, 1, Some(20));
        assert_eq!(store.load_conditions().await.unwrap(), [(ONE, want)]);
    }

    #[tokio::test]
    async fn bindings_that_could_not_be_written_are_kept() {
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        state.remember_response(binding(7, 1)).await.unwrap();
        store.close().await.unwrap();
        assert!(!keeper.save(Save::News).await);
        assert_eq!(keeper.progress.lock().await.unwritten, [binding(7, 1)]);
        state.remember_response(binding(8, 2)).await.unwrap();
        assert!(!keeper.save(Save::News).await);
        assert_eq!(keeper.progress.lock().await.unwritten, [binding(7, 1)]);
        assert_eq!(keeper.metrics.responses_written.get(), 0);
    }

    fn seen(status: SessionStatus, used: u16, second: i64) -> SeenWindow {
        SeenWindow {
            status,
            span: Some(Span {
                start: at(0),
                end: at(18_000),
            }),
            used: Some(Permille(used)),
            week_used: None,
            seen_at: at(second),
        }
    }

    #[tokio::test]
    async fn session_windows_survive_a_restart() {
        use SessionStatus::{Allowed, Rejected};
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        let note = async |account, window| {
            state.note_session_window(account, window).await.unwrap();
        };
        note(ONE, seen(Allowed, 1, 1)).await;
        note(TWO, seen(Allowed, 1, 1)).await;
        assert!(keeper.save(Save::News).await);
        let stored = async || store.load_session_windows().await.unwrap();
        let both = [(ONE, seen(Allowed, 1, 1)), (TWO, seen(Allowed, 1, 1))];
        assert_eq!(stored().await, both);

        // A little more of it is used: that has time.
        note(ONE, seen(Allowed, 2, 2)).await;
        assert!(keeper.save(Save::News).await);
        assert_eq!(stored().await, both);
        // Not that it is over; what has waited goes along.
        note(TWO, seen(Rejected, 9, 3)).await;
        assert!(keeper.save(Save::News).await);
        let both = [(ONE, seen(Allowed, 2, 2)), (TWO, seen(Rejected, 9, 3))];
        assert_eq!(stored().await, both);
        // The end waits for nothing.
        note(ONE, seen(Allowed, 3, 4)).await;
        assert!(keeper.flush(Instant::now()).await);
        let both = [(ONE, seen(Allowed, 3, 4)), (TWO, seen(Rejected, 9, 3))];
        assert_eq!(stored().await, both);

        let (state, keeper) = started(&store, at(10)).await;
        assert_eq!(state.session_window(ONE), Some(seen(Allowed, 3, 4)));
        assert_eq!(state.session_window(TWO), Some(seen(Rejected, 9, 3)));
        // Known already: nothing to write.
        state
            .note_session_window(ONE, seen(Allowed, 3, 20))
            .await
            .unwrap();
        assert!(keeper.flush(Instant::now()).await);
        assert_eq!(stored().await, both);
    }

    #[tokio::test]
    async fn session_windows_that_could_not_be_written_are_kept() {
        let (_dir, store) = filled().await;
        let (state, keeper) = started(&store, at(0)).await;
        let window = seen(SessionStatus::Allowed, 1, 1);
        state.note_session_window(ONE, window).await.unwrap();
        store.close().await.unwrap();
        assert!(!keeper.save(Save::News).await);
        assert!(!keeper.save(Save::News).await);
        let progress = keeper.progress.lock().await;
        assert_eq!(progress.windows.unwritten, [(ONE, window)].into());
    }
}
