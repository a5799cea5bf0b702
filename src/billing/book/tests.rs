//! Rows and single cases; the laws are in `laws`, many threads at once in `crowds`.

mod crowds;
mod laws;

use chrono::TimeDelta;
use chrono_tz::Tz;

use super::*;

const USER: UserId = UserId(1);
const KEY: ApiKeyId = ApiKeyId(1);
const GROUP: GroupId = GroupId(1);
const PAYER: Payer = payer(Pays::Balance);

const fn payer(pays: Pays) -> Payer {
    Payer {
        user: USER,
        key: KEY,
        group: GROUP,
        pays,
    }
}

/// Seconds from the beginning of a day (and of a minute).
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_057_600 + seconds, 0).unwrap()
}

fn hours(hours: i64) -> DateTime<Utc> {
    at(hours * 3600)
}

fn ask(mode: Reservation, want: i64) -> Ask {
    Ask {
        payer: PAYER,
        limits: Limits::default(),
        want: Money(want),
        least: Money(0),
        mode,
        take_what_is_free: false,
        count_request: Count::Yes,
    }
}

fn with_balance(balance: i64) -> Book {
    let book = Book::new(Tz::UTC);
    book.refresh(vec![(USER, Money(balance))], vec![]);
    book
}

fn standing(book: &Book, now: DateTime<Utc>) -> Standing {
    book.standing(USER, KEY, GROUP, now)
}

fn record(payer: Payer, charge: i64, ended: DateTime<Utc>) -> Arc<UsageRecord> {
    let billing_type = match payer.pays {
        Pays::Balance => BillingType::Balance,
        Pays::Subscription => BillingType::Subscription,
    };
    Arc::new(UsageRecord {
        created_at: ended - TimeDelta::seconds(2),
        user_id: payer.user,
        api_key_id: payer.key,
        group_id: payer.group,
        cost: Money(charge),
        charge: Money(charge),
        billing_type,
        duration_ms: 2000,
        ..UsageRecord::blank("")
    })
}

#[test]
fn every_mode_grants_what_it_promises() {
    use Reservation::{Available, None as Nothing, Strict};
    const HELD: &str = "held";
    const REFUSED: &str = "refused";
    type Row<'r> = (Reservation, i64, i64, i64, i64, bool, Result<i64, &'r str>);
    #[rustfmt::skip]
    let rows: &[Row] = &[
        // Mode, balance, held by others, want, least, take what is free, what comes.
        (Available,   100,  0,  30,  0, false, Ok(30)),
        (Available,   100, 90,  30,  0, false, Ok(10)),
        (Available,   100,100,  30,  0, false, Err(HELD)),
        (Available,   100,100,   0,  0, false, Ok(0)),
        (Available,   100,  0, 300,  0, false, Ok(100)),
        (Available,     0,  0,   0,  0, false, Err(REFUSED)),
        (Available,    -5,  0,  30,  0, false, Err(REFUSED)),
        (Strict,      100,  0,  30, 10, false, Ok(30)),
        (Strict,      100, 80,  30, 10, false, Err(HELD)),
        (Strict,      100, 80,  30, 10, true,  Ok(20)),
        (Strict,      100, 95,  30, 10, true,  Err(HELD)),
        (Strict,      100,100,  30,  0, true,  Err(HELD)),
        (Strict,      100,100,   0,  0, false, Ok(0)),
        (Strict,      100,  0, 300, 10, false, Ok(100)),
        (Strict,      100,  1, 300, 10, false, Err(HELD)),
        (Strict,      100,  0, 300,101, false, Err(REFUSED)),
        (Strict,      100, 99, 300,101, true,  Err(REFUSED)),
        (Strict,        0,  0,   0,  0, false, Err(REFUSED)),
        (Nothing,     100,100,  30,  0, false, Ok(0)),
        (Nothing,       1,  0, 300,  0, false, Ok(0)),
        (Nothing,       0,  0,   0,  0, false, Err(REFUSED)),
    ];
    for row @ (mode, balance, held, want, least, take_what_is_free, expected) in rows {
        let book = with_balance(*balance);
        let others = (*held > 0).then(|| book.reserve(&ask(Available, *held), at(0)).unwrap());
        let ask = Ask {
            least: Money(*least),
            take_what_is_free: *take_what_is_free,
            ..ask(*mode, *want)
        };
        let checked = book.check(&ask, at(0));
        let reserved = book.reserve(&ask, at(0));
        assert_eq!(
            checked,
            reserved.as_ref().map(Hold::amount).map_err(|e| *e),
            "{row:?}"
        );
        let came = match &reserved {
            Ok(hold) => Ok(hold.amount().0),
            Err(Denied::Held(_)) => Err(HELD),
            Err(Denied::Refused(_)) => Err(REFUSED),
        };
        assert_eq!(came, *expected, "{row:?}");
        assert_eq!(
            standing(&book, at(0)).reserved,
            Money(held + came.unwrap_or(0)),
            "{row:?}"
        );
        drop((others, reserved));
        assert_eq!(standing(&book, at(0)).reserved, Money(0));
        assert_eq!(book.open_holds(), OpenHolds::default());
    }
}

#[test]
fn the_refusal_names_the_limit_that_is_in_the_way() {
    let limits = Limits {
        quota: Some(Money(50)),
        key_windows: [Some(Money(20)), Some(Money(30)), None],
        ..Limits::default()
    };
    let book = with_balance(100);
    let ask = |want| Ask {
        limits,
        ..ask(Reservation::Available, want)
    };
    let refused = |now| match book.check(&ask(100), now) {
        Err(Denied::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let spend = |charge, now| {
        let hold = book.reserve(&ask(100), now).unwrap();
        let granted = hold.amount();
        assert_eq!(hold.settle(Money(charge), now), Money(charge));
        granted
    };
    assert_eq!(spend(20, hours(1)), Money(20), "the 5-hour window");
    let expected = Refusal {
        limit: Limit::KeyWindow(WindowKind::FiveHours),
        amount: Some(Money(20)),
        left: Money(0),
        held: Money(0),
        resets_at: Some(hours(6)),
    };
    assert_eq!(refused(hours(2)), expected);
    assert_eq!(spend(25, hours(6)), Money(10), "the day has less left");
    let day = Refusal {
        limit: Limit::KeyWindow(WindowKind::Day),
        amount: Some(Money(30)),
        left: Money(-15),
        resets_at: Some(hours(24)),
        ..expected
    };
    // Both windows are used up; the day takes longer to come back.
    assert_eq!(refused(hours(7)), day);
    assert_eq!(spend(5, hours(24)), Money(5), "the quota has less left");
    let quota = Refusal {
        limit: Limit::Quota,
        amount: Some(Money(50)),
        left: Money(0),
        resets_at: None,
        ..expected
    };
    assert_eq!(refused(hours(24)), quota);
    book.refresh(vec![(USER, Money(-1))], vec![]);
    assert_eq!(refused(hours(24)), quota, "as authentication has it");
}

#[test]
fn what_is_only_held_says_who_holds_it() {
    let book = with_balance(100);
    let _hold = book.reserve(&ask(Reservation::Strict, 70), at(0)).unwrap();
    let expected = Refusal {
        limit: Limit::Balance,
        amount: None,
        left: Money(100),
        held: Money(70),
        resets_at: None,
    };
    let held = book.check(&ask(Reservation::Strict, 40), at(0));
    assert_eq!(held, Err(Denied::Held(expected)));
    assert_eq!(expected.free(), Money(30));
    assert_eq!(
        book.open_holds(),
        OpenHolds {
            count: 1,
            sum: Money(70)
        }
    );
}

#[test]
fn a_subscription_pays_without_the_balance() {
    let book = Book::new(Tz::UTC);
    let ask = Ask {
        payer: payer(Pays::Subscription),
        limits: Limits {
            quota: Some(Money(100)),
            subscription: [Some(Money(10)), None, Some(Money(15))],
            ..Limits::default()
        },
        ..ask(Reservation::Strict, 8)
    };
    let first = book.reserve(&ask, hours(1)).unwrap();
    let held = book.check(&ask, hours(1));
    assert!(matches!(held, Err(Denied::Held(_))), "{held:?}");
    assert_eq!(standing(&book, hours(1)).reserved, Money(0), "no balance");
    assert_eq!(book.open_holds().sum, Money(8));
    assert_eq!(first.settle(Money(8), hours(2)), Money(8));
    assert_eq!(book.check(&ask, hours(3)), Ok(Money(2)));
    assert_eq!(book.check(&ask, hours(24)), Ok(Money(7)), "of the month");
    let other = Ask {
        payer: Payer {
            group: GroupId(2),
            ..ask.payer
        },
        ..ask
    };
    assert_eq!(
        book.check(&other, hours(3)),
        Ok(Money(8)),
        "its own windows"
    );
    let standing = standing(&book, hours(3));
    let counted = Window {
        start: Some(hours(0)),
        used: Money(8),
    };
    assert_eq!(standing.subscription_windows, [counted; 3]);
    assert_eq!((standing.balance, standing.key_spent), (Money(0), Money(8)));
}

#[test]
fn requests_a_minute_are_counted_when_they_are_granted() {
    let book = with_balance(100);
    let ask = |user_rpm, group_rpm| Ask {
        limits: Limits {
            user_rpm,
            group_rpm,
            ..Limits::default()
        },
        ..ask(Reservation::Available, 60)
    };
    let limit = |answer: Result<Money, Denied>| match answer {
        Err(Denied::Refused(refusal)) => Some((refusal.limit, refusal.resets_at)),
        _ => None,
    };
    let first = book.reserve(&ask(2, 2), at(10)).unwrap();
    let rest = book.reserve(&ask(2, 2), at(20)).unwrap();
    assert_eq!(rest.amount(), Money(40));
    let full = book.check(&ask(2, 0), at(59));
    assert!(
        matches!(full, Err(Denied::Held(_))),
        "money first: {full:?}"
    );
    drop((first, rest));
    let next = Some(at(60));
    assert_eq!(
        limit(book.check(&ask(2, 3), at(59))),
        Some((Limit::UserRpm, next))
    );
    assert_eq!(
        limit(book.check(&ask(3, 2), at(59))),
        Some((Limit::GroupRpm, next))
    );
    assert_eq!(book.check(&ask(3, 3), at(59)), Ok(Money(60)));
    let uncounted = Ask {
        count_request: Count::No,
        ..ask(2, 2)
    };
    assert_eq!(book.check(&uncounted, at(59)), Ok(Money(60)));
    // What the user's minute has counted already is held to the group's alone.
    let in_group = |user_rpm, group_rpm| Ask {
        count_request: Count::InGroup,
        ..ask(user_rpm, group_rpm)
    };
    assert_eq!(
        limit(book.check(&in_group(1, 2), at(59))),
        Some((Limit::GroupRpm, next))
    );
    drop(book.reserve(&in_group(1, 3), at(59)).unwrap());
    assert_eq!(
        limit(book.check(&ask(0, 3), at(59))),
        Some((Limit::GroupRpm, next))
    );
    assert_eq!(book.check(&ask(3, 0), at(59)), Ok(Money(60)));
    assert_eq!(book.check(&ask(1, 1), at(60)), Ok(Money(60)));
    drop(book.reserve(&ask(1, 1), at(60)));
    // A thread whose clock was read just before the minute changed opens no second one.
    assert!(limit(book.check(&ask(1, 1), at(59))).is_some());
    assert_eq!(book.check(&ask(1, 1), at(-600)), Ok(Money(60)), "set back");
}

#[test]
fn a_charge_above_the_reservation_is_kept_in_full_but_in_strict() {
    let book = with_balance(10);
    let hold = book
        .reserve(&ask(Reservation::Available, 5), at(0))
        .unwrap();
    assert_eq!(hold.settle(Money(30), at(1)), Money(30));
    assert_eq!(book.balance(USER), Money(-20));

    let book = with_balance(100);
    let other = book.reserve(&ask(Reservation::Strict, 70), at(0)).unwrap();
    let hold = book.reserve(&ask(Reservation::Strict, 20), at(0)).unwrap();
    assert_eq!(hold.settle(Money(40), at(1)), Money(30), "20 and 10 free");
    assert_eq!(other.settle(Money(70), at(1)), Money(70));
    assert_eq!(book.balance(USER), Money(0));
}

#[test]
fn nonsense_is_held_to_reason() {
    let most = Money(i64::MAX);
    let book = with_balance(i64::MAX);
    let holds: Vec<Hold> = (0..3)
        .map(|_| book.reserve(&ask(Reservation::Strict, i64::MAX), at(0)))
        .map(Result::unwrap)
        .collect();
    assert!(holds.iter().all(|hold| hold.amount() == MOST_A_REQUEST));
    for hold in holds {
        assert_eq!(hold.settle(most, at(0)), MOST_A_REQUEST);
    }
    assert_eq!(standing(&book, at(0)).reserved, Money(0));
    let hold = book.reserve(&ask(Reservation::Strict, -5), at(0)).unwrap();
    assert_eq!(hold.amount(), Money(0));
    assert_eq!(hold.settle(Money(-5), at(0)), Money(0));
    // A subscription without limits.
    let unlimited = Ask {
        payer: payer(Pays::Subscription),
        ..ask(Reservation::Strict, i64::MAX)
    };
    assert_eq!(book.check(&unlimited, at(0)), Ok(MOST_A_REQUEST));
}

#[test]
fn a_refresh_never_resurrects_spent_money() {
    let book = with_balance(100);
    book.refresh(vec![], vec![(KEY, Money(5))]);
    let spent = record(PAYER, 30, at(0));
    book.restore(&spent);
    let both = |book: &Book| (book.balance(USER).0, book.key_spent(KEY).0);
    assert_eq!(both(&book), (70, 35));
    book.refresh(vec![(USER, Money(100))], vec![(KEY, Money(5))]);
    assert_eq!(both(&book), (70, 35), "not yet written");
    let by_subscription = record(payer(Pays::Subscription), 7, at(0));
    book.restore(&by_subscription);
    assert_eq!(both(&book), (70, 42));
    book.written(
        &[spent, by_subscription],
        &[(USER, Money(70))],
        &[(KEY, Money(42))],
    );
    assert_eq!(both(&book), (70, 42));
    book.refresh(vec![(USER, Money(170))], vec![]);
    assert_eq!(both(&book), (170, 42), "a credit arrived");
}

#[test]
fn what_was_counted_goes_on_after_a_restart_and_can_be_given_back() {
    let book = with_balance(100);
    let window = |start, used| Window {
        start: Some(hours(start)),
        used: Money(used),
    };
    let loaded = [window(1, 4), window(0, 6), window(-24, 9)];
    let subscribed = [window(0, 1), window(0, 2), window(0, 3)];
    book.load_windows(vec![(KEY, loaded)], vec![((USER, GROUP), subscribed)]);
    let now = standing(&book, hours(2));
    assert_eq!(now.key_windows, loaded);
    assert_eq!(now.subscription_windows, subscribed);
    let late = record(payer(Pays::Subscription), 5, hours(7));
    book.restore(&late);
    let now = standing(&book, hours(7));
    assert_eq!(
        now.key_windows,
        [window(7, 5), window(0, 11), window(-24, 14)]
    );
    let sixes = [window(0, 6), window(0, 7), window(0, 8)];
    assert_eq!(now.subscription_windows, sixes);
    book.reversed(&Payer::of(&late).unwrap(), late.charge, late.settled_at());
    assert_eq!(standing(&book, hours(7)).subscription_windows, subscribed);
    // It was counted in a window that is over.
    book.reversed(&payer(Pays::Balance), Money(4), hours(1));
    let now = standing(&book, hours(7));
    assert_eq!(
        now.key_windows,
        [window(7, 0), window(0, 2), window(-24, 5)]
    );
    let over = standing(&book, hours(24)).key_windows;
    assert_eq!(over, [Window::default(), Window::default(), window(-24, 5)]);
}

#[test]
fn a_hold_gives_way_to_another_of_the_same_request_or_stays() {
    use Reservation::{Available, Strict};
    const HELD: &str = "held";
    const REFUSED: &str = "refused";
    type Row<'r> = (Reservation, i64, i64, i64, i64, Result<i64, &'r str>);
    #[rustfmt::skip]
    let rows: &[Row] = &[
        // Mode, held of 100 before, by others, want, least, what it comes to.
        (Strict,    60,  0,  80,  0, Ok(80)),
        (Strict,    60,  0,  20,  0, Ok(20)),
        (Strict,    60,  0, 300,  0, Ok(100)),
        (Strict,    60, 30,  80,  0, Err(HELD)),
        (Strict,    60,  0, 300, 101, Err(REFUSED)),
        (Available, 60, 40,  80,  0, Ok(60)),
        (Available, 60,  0,  80,  0, Ok(80)),
    ];
    for row @ (mode, before, others, want, least, expected) in rows {
        let book = with_balance(100);
        let hold = book.reserve(&ask(*mode, *before), at(0)).unwrap();
        let _others = (*others > 0).then(|| book.reserve(&ask(*mode, *others), at(0)).unwrap());
        let again = Ask {
            least: Money(*least),
            count_request: Count::No,
            ..ask(*mode, *want)
        };
        let (hold, got) = match hold.replace(&again, at(0)) {
            Ok(hold) => {
                let amount = hold.amount();
                (hold, Ok(amount.0))
            }
            Err(denied) => match *denied {
                (hold, Denied::Held(_)) => (hold, Err(HELD)),
                (hold, Denied::Refused(_)) => (hold, Err(REFUSED)),
            },
        };
        assert_eq!(got, *expected, "{row:?}");
        // Refused, it holds what it held.
        assert_eq!(hold.amount(), Money(got.unwrap_or(*before)), "{row:?}");
        let held = hold.amount() + Money(*others);
        assert_eq!(standing(&book, at(0)).reserved, held, "{row:?}");
        assert_eq!(book.open_holds().count, 1 + u64::from(*others > 0));
        drop(hold);
        assert_eq!(standing(&book, at(0)).reserved, Money(*others), "{row:?}");
    }
}

#[test]
fn a_hold_may_change_who_pays() {
    let book = with_balance(100);
    let subscribed = Payer {
        pays: Pays::Subscription,
        ..PAYER
    };
    let in_subscription = Ask {
        payer: subscribed,
        ..ask(Reservation::Strict, 70)
    };
    let hold = book.reserve(&in_subscription, at(0)).unwrap();
    assert_eq!(standing(&book, at(0)).reserved, Money(0));
    let hold = hold.replace(&ask(Reservation::Strict, 90), at(0)).unwrap();
    assert_eq!(hold.payer(), &PAYER);
    assert_eq!(standing(&book, at(0)).reserved, Money(90));
    assert_eq!(hold.settle(Money(80), at(0)), Money(80));
    let now = standing(&book, at(0));
    assert_eq!((now.balance, now.reserved), (Money(20), Money(0)));
    assert_eq!(book.open_holds(), OpenHolds::default());
    // The other key and user of a question are none of this hold's.
    let hold = book.reserve(&ask(Reservation::Strict, 5), at(0)).unwrap();
    let others = Payer {
        user: UserId(USER.0 + 1),
        ..PAYER
    };
    let of_others = Ask {
        payer: others,
        ..ask(Reservation::Strict, 10)
    };
    let hold = hold.replace(&of_others, at(0)).unwrap();
    assert_eq!((hold.payer(), hold.amount()), (&PAYER, Money(10)));
}

#[tokio::test]
async fn those_who_wait_are_woken_by_whatever_may_help_them() {
    let limits = Limits {
        quota: Some(Money(200)),
        ..Limits::default()
    };
    let ask = Ask {
        limits,
        ..ask(Reservation::Strict, 100)
    };
    type Event = fn(&Book, Hold);
    let events: [(&str, Event); 6] = [
        ("dropped", |_, hold| drop(hold)),
        ("settled", |_, hold| {
            hold.settle(Money(1), at(0));
        }),
        ("credited", |book, hold| {
            book.refresh(vec![(USER, Money(101))], vec![]);
            std::mem::forget(hold);
        }),
        ("key spend lowered", |book, hold| {
            book.refresh(vec![], vec![(KEY, Money(-1))]);
            std::mem::forget(hold);
        }),
        ("given back", |book, hold| {
            book.reversed(&PAYER, Money(1), at(0));
            std::mem::forget(hold);
        }),
        ("panicked", |_, hold| {
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _hold = hold;
                std::panic::resume_unwind(Box::new(()));
            }));
            assert!(unwound.is_err());
        }),
    ];
    for (what, event) in events {
        let book = with_balance(100);
        let hold = book.reserve(&ask, at(0)).unwrap();
        // Not polled before the event: it counts from the call on.
        let changed = book.changed(USER);
        assert!(matches!(book.check(&ask, at(0)), Err(Denied::Held(_))));
        event(&book, hold);
        let woken = tokio::time::timeout(std::time::Duration::from_secs(30), changed).await;
        assert!(woken.is_ok(), "{what}");
    }
    let book = with_balance(100);
    let changed = book.changed(USER);
    book.refresh(vec![(USER, Money(90))], vec![(KEY, Money(7))]);
    let changed = futures::FutureExt::now_or_never(changed);
    assert_eq!(changed, None, "nobody has more than before");
}
