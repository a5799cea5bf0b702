//! The saboteur: kills the server, locks its database, fills its disks.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sea_orm::sqlx::{self, ConnectOptions, Connection};
use tokio::task::block_in_place;

use super::disks::{Disks, Filler};
use super::{Done, Scene, USERS, segments, user_name};
use crate::chance::Chance;
use crate::harness::{Gateway, LIMIT};

/// Without any request ending for so long, something hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// What each credit is, in dollars and in nano-dollars.
const CREDIT: (&str, i64) = ("1.000000001", 1_000_000_001);

/// What goes on around a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Another process writes to the database, and takes its time.
    Locked,
    /// The database's disk is full. (A file system cannot be made read-only while it is written to, and
    /// permissions mean nothing to who has the files open; with no room for a page of its log SQLite
    /// fails just the same, in the middle of a transaction.)
    DatabaseFull,
    /// The journal's disk is full: the journal goes on with the room it has, as long as the database
    /// follows.
    JournalFull,
    /// The journal's disk is full and the database does not follow: nothing more can be taken.
    JournalFullLocked,
}

/// When the server is killed and started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Once it has gone on after the trouble.
    After,
    /// Killed in the middle of the trouble; the next server does not see it any more.
    Within,
    /// Killed in the middle of the trouble, and started in it too.
    Amid,
}

/// In turn, one for every kill; the short form has the first half of them.
const TROUBLES: [(Trouble, When); 16] = [
    (Trouble::Locked, When::Within),
    (Trouble::JournalFullLocked, When::After),
    (Trouble::None, When::After),
    (Trouble::DatabaseFull, When::After),
    (Trouble::JournalFull, When::Amid),
    (Trouble::None, When::After),
    (Trouble::JournalFullLocked, When::Within),
    (Trouble::DatabaseFull, When::Amid),
    (Trouble::Locked, When::Amid),
    (Trouble::JournalFullLocked, When::Amid),
    (Trouble::None, When::After),
    (Trouble::DatabaseFull, When::Within),
    (Trouble::JournalFull, When::After),
    (Trouble::None, When::After),
    (Trouble::Locked, When::After),
    (Trouble::JournalFull, When::Within),
];

/// Kills and troubles, spread over all requests; returns when they are done and the server runs.
pub(super) async fn sabotage(gateway: &mut Gateway, scene: &Scene, disks: &Disks) -> Done {
    let scale = scene.scale;
    let mut chance = Chance::of((scale.seed, "saboteur"));
    let mut done = Done::default();
    let began = Instant::now();
    for number in 0..scale.kills {
        let per_kill = scale.requests / scale.kills.max(1);
        let moment = number * per_kill + chance.below(per_kill.max(1));
        wait_for(scene, moment).await;
        tokio::time::sleep(chance.ms(0, 100)).await;
        let (trouble, when) = TROUBLES[number as usize % TROUBLES.len()];
        let trouble = match (disks, trouble) {
            (Disks::Small(_), trouble) => trouble,
            (Disks::AsTheyAre, Trouble::JournalFullLocked) => Trouble::Locked,
            (Disks::AsTheyAre, Trouble::Locked) => Trouble::Locked,
            (Disks::AsTheyAre, _) => Trouble::None,
        };
        kill_in((trouble, when), gateway, scene, &mut chance, &mut done).await;
        let name = user_name(number as usize % USERS);
        block_in_place(|| gateway.run(&["users", "credit", &name, CREDIT.0]));
        done.credited[number as usize % USERS] += CREDIT.1;
        println!(
            "{:6.1} s: kill {} of {} ({trouble:?}, {when:?}), {} requests, {} refused",
            began.elapsed().as_secs_f64(),
            number + 1,
            scale.kills,
            scene.ended(),
            scene.refused.load(Ordering::Relaxed),
        );
    }
    wait_for(scene, scale.requests).await;
    done
}

/// Waits until so many requests have ended.
async fn wait_for(scene: &Scene, count: u64) {
    let mut last = (scene.ended(), Instant::now());
    while last.0 < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let ended = scene.ended();
        if ended > last.0 {
            last = (ended, Instant::now());
        }
        assert!(last.1.elapsed() < PATIENCE, "no request ends any more");
    }
}

/// Waits until requests end and records reach the database again, whatever has been.
async fn goes_on(gateway: &Gateway, scene: &Scene, trouble: Trouble, done: &mut Done) {
    wait_for(scene, scene.ended() + 2 * scene.scale.clients as u64).await;
    let written = || block_in_place(|| gateway.metric("records_written_total"));
    let (before, began) = (written(), Instant::now());
    while written() <= before {
        if began.elapsed() > LIMIT {
            return done.stuck.push(trouble.name());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One kill, in the middle of a trouble or right after it, and the server's next start.
async fn kill_in(
    (trouble, when): (Trouble, When),
    gateway: &mut Gateway,
    scene: &Scene,
    chance: &mut Chance,
    done: &mut Done,
) {
    if trouble == Trouble::None {
        kill(gateway, done);
        return start(gateway, scene);
    }
    let half = scene.scale.trouble.as_millis() as u64 / 2;
    let refused = || scene.refused.load(Ordering::Relaxed);
    let before = refused();
    let had_journal = segments(gateway) > 0;
    let running = Running::begin(trouble, &gateway.data()).await;
    tokio::time::sleep(chance.ms(half, 3 * half + 1)).await;
    if trouble == Trouble::JournalFullLocked && had_journal {
        // There is no way to go on: whoever comes is told so, and nobody is let in whose record might
        // find no room.
        let began = Instant::now();
        while refused() == before && began.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        done.refused_when_full.push(refused() - before);
    }
    match when {
        When::After => {
            running.end().await;
            goes_on(gateway, scene, trouble, done).await;
            kill(gateway, done);
            start(gateway, scene);
        }
        When::Within => {
            kill(gateway, done);
            running.end().await;
            start(gateway, scene);
        }
        When::Amid => {
            kill(gateway, done);
            let release = tokio::spawn({
                let after = chance.ms(half, 2 * half + 1);
                async move {
                    tokio::time::sleep(after).await;
                    running.end().await;
                }
            });
            let started = block_in_place(|| gateway.try_launch());
            release.await.expect("the trouble ends");
            match started {
                Ok(()) => *scene.address.lock() = gateway.address,
                // Not while there is no room, but afterwards.
                Err(why) => {
                    let last = why.lines().last().unwrap_or_default();
                    println!("  did not start: {last}");
                    done.failed_starts += 1;
                    start(gateway, scene);
                }
            }
        }
    }
    *done.troubles.entry(trouble.name()).or_default() += 1;
}

fn kill(gateway: &mut Gateway, done: &mut Done) {
    block_in_place(|| gateway.kill());
    done.kills += 1;
}

fn start(gateway: &mut Gateway, scene: &Scene) {
    block_in_place(|| gateway.launch());
    *scene.address.lock() = gateway.address;
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Trouble::None => "none",
            Trouble::Locked => "database locked",
            Trouble::DatabaseFull => "database's disk full",
            Trouble::JournalFull => "journal's disk full",
            Trouble::JournalFullLocked => "journal's disk full and database locked",
        }
    }
}

/// A trouble under way.
struct Running {
    lock: Option<SqliteConnection>,
    filler: Option<Filler>,
}

impl Running {
    async fn begin(trouble: Trouble, data: &Path) -> Running {
        let database = data.join("tollgate.db");
        let mut running = Running {
            lock: None,
            filler: None,
        };
        if let Trouble::Locked | Trouble::JournalFullLocked = trouble {
            let mut connection = connect(&database).await;
            execute(&mut connection, "BEGIN EXCLUSIVE").await;
            running.lock = Some(connection);
        }
        if trouble == Trouble::DatabaseFull {
            // Room in the write-ahead log that SQLite has already is room it would go on with.
            let mut connection = connect(&database).await;
            execute(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)").await;
            let _ = connection.close().await;
        }
        let full: Option<PathBuf> = match trouble {
            Trouble::DatabaseFull => Some(data.to_owned()),
            Trouble::JournalFull | Trouble::JournalFullLocked => Some(data.join("journal")),
            Trouble::None | Trouble::Locked => None,
        };
        running.filler = full.map(|directory| block_in_place(|| Filler::fill(&directory)));
        running
    }

    async fn end(self) {
        if let Some(filler) = self.filler {
            block_in_place(|| filler.empty());
        }
        if let Some(mut connection) = self.lock {
            execute(&mut connection, "ROLLBACK").await;
            let _ = connection.close().await;
        }
    }
}

async fn connect(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(database)
        .busy_timeout(Duration::from_secs(20))
        .connect()
        .await
        .unwrap()
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}
