//! What the accounts' providers last said about their session windows (SPEC 7.9).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::dense::Dense;
use crate::domain::AccountId;
use crate::domain::account::seen_window::SeenWindow;

/// One window for each account that has been heard of.
pub(super) struct Windows {
    accounts: Dense<Mutex<Option<SeenWindow>>>,
    /// Those that have changed since somebody asked.
    unsaved: Mutex<BTreeMap<AccountId, SeenWindow>>,
}

impl Windows {
    pub(super) fn new() -> Windows {
        Windows {
            accounts: Dense::new(),
            unsaved: Mutex::default(),
        }
    }

    pub(super) fn of(&self, account: AccountId) -> Option<SeenWindow> {
        self.accounts.read(account.0, |window| *window.lock())?
    }

    /// Notes what an answer says. Nothing is done where that was known.
    pub(super) fn note(&self, account: AccountId, window: SeenWindow) {
        let merged = self.accounts.with(account.0, Arc::default, |known| {
            let mut known = known.lock();
            let merged = known.as_ref().map_or(window, |known| window.after(known));
            // What was heard later stands.
            let is_news = known.as_ref().is_none_or(|known| {
                merged.seen_at >= known.seen_at && !merged.adds_nothing_to(known)
            });
            if is_news {
                *known = Some(merged);
            }
            is_news.then_some(merged)
        });
        if let Some(merged) = merged {
            let mut unsaved = self.unsaved.lock();
            let later = unsaved
                .get(&account)
                .is_some_and(|u| u.seen_at > merged.seen_at);
            if !later {
                unsaved.insert(account, merged);
            }
        }
    }

    pub(super) fn take_unsaved(&self) -> BTreeMap<AccountId, SeenWindow> {
        std::mem::take(&mut *self.unsaved.lock())
    }

    /// Puts back what was saved; what is known already stays.
    pub(super) fn restore(&self, windows: Vec<(AccountId, SeenWindow)>) {
        for (account, window) in windows {
            self.accounts.with(account.0, Arc::default, |known| {
                known.lock().get_or_insert(window);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use tollgate_filters::verdict::SessionStatus;

    use super::*;
    use crate::domain::account::seen_window::Permille;

    const ONE: AccountId = AccountId(1);

    fn seen(status: SessionStatus, used: u16, second: i64) -> SeenWindow {
        SeenWindow {
            status,
            span: None,
            used: Some(Permille(used)),
            week_used: None,
            seen_at: DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap(),
        }
    }

    use SessionStatus::{Allowed, Rejected};

    #[test]
    fn only_news_are_kept_and_handed_out_once() {
        let windows = Windows::new();
        assert_eq!(windows.of(ONE), None);
        windows.note(ONE, seen(Allowed, 5, 0));
        windows.note(ONE, seen(Allowed, 5, 1));
        assert_eq!(windows.of(ONE), Some(seen(Allowed, 5, 0)), "nothing new");
        windows.note(ONE, seen(Rejected, 9, 3));
        windows.note(ONE, seen(Allowed, 6, 2));
        assert_eq!(windows.of(ONE), Some(seen(Rejected, 9, 3)), "heard later");
        windows.note(AccountId(2), seen(Allowed, 1, 0));
        let both = [
            (ONE, seen(Rejected, 9, 3)),
            (AccountId(2), seen(Allowed, 1, 0)),
        ];
        assert_eq!(windows.take_unsaved(), both.into());
        assert_eq!(windows.take_unsaved(), [].into());
        windows.note(ONE, seen(Rejected, 9, 4));
        assert_eq!(windows.take_unsaved(), [].into());
    }

    #[test]
    fn what_is_restored_is_saved_already_and_changes_nothing_known() {
        let windows = Windows::new();
        windows.note(ONE, seen(Allowed, 5, 0));
        windows.take_unsaved();
        windows.restore(vec![
            (ONE, seen(Rejected, 1, -9)),
            (AccountId(2), seen(Rejected, 1, -9)),
        ]);
        assert_eq!(windows.of(ONE), Some(seen(Allowed, 5, 0)));
        assert_eq!(windows.of(AccountId(2)), Some(seen(Rejected, 1, -9)));
        assert_eq!(windows.take_unsaved(), [].into());
    }
}
