//! SIGTERM and SIGINT: readiness fails, running requests finish (new ones are still served), and
//! only then is Pingora told to stop. Its own grace period would cut them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::proxy::Rooms;

/// How often the number of running requests is looked at while draining.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Stops a server from inside the process.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Sender<bool>);

impl Default for StopSignal {
    fn default() -> StopSignal {
        StopSignal(watch::Sender::new(false))
    }
}

impl StopSignal {
    /// The server drains and stops.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    async fn stopped(&self) {
        // The sender lives in `self`: this cannot fail while it is awaited.
        let _ = self.0.subscribe().wait_for(|stop| *stop).await;
    }
}

/// Tells Pingora to stop, when everything has ended.
pub struct DrainWatch {
    rooms: Arc<Rooms>,
    stop: StopSignal,
}

impl DrainWatch {
    /// Watches the signals and `stop`.
    pub fn new(rooms: Arc<Rooms>, stop: StopSignal) -> DrainWatch {
        DrainWatch { rooms, stop }
    }

    async fn drain(&self, terminate: &mut Signal, interrupt: &mut Signal) {
        let deadline = Instant::now() + self.rooms.config.load().gateway.drain_timeout;
        let running = &self.rooms.metrics.in_flight;
        log::info!("draining: {} requests are running", running.get());
        let drained = async {
            while running.get() > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = drained => log::info!("drained"),
            () = tokio::time::sleep_until(deadline) => {
                log::warn!("time is up: {} requests are cut", running.get());
            }
            _ = terminate.recv() => log::warn!("told twice: {} requests are cut", running.get()),
            _ = interrupt.recv() => log::warn!("told twice: {} requests are cut", running.get()),
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for DrainWatch {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            log::error!("signals cannot be watched; only SIGKILL will end this process");
            std::future::pending::<()>().await;
            return ShutdownSignal::FastShutdown;
        };
        tokio::select! {
            _ = terminate.recv() => log::info!("SIGTERM"),
            _ = interrupt.recv() => log::info!("SIGINT"),
            () = self.stop.stopped() => {}
        }
        self.rooms.draining.store(true, Ordering::Relaxed);
        self.drain(&mut terminate, &mut interrupt).await;
        ShutdownSignal::GracefulTerminate
    }
}
