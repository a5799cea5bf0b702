//! The load client of benches/load for event streams: keeps a number of connections busy, each with
//! one stream after the other, and measures what wrk cannot see: when the first delta comes, and
//! whether every delta does.
//!
//! Usage: `stream_load ADDRESS PATH CONNECTIONS SECONDS DELTAS`, with LOAD_BODY, LOAD_KEY and
//! LOAD_HEADER in the environment as for post.lua. Prints one line of JSON.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The line that begins every delta.
const DELTA: &[u8] = b"event: response.output_text.delta";
/// What ends a chunked answer.
const END: &[u8] = b"\r\n0\r\n\r\n";
/// A stream that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Default)]
struct Seen {
    /// From request to first delta, and to the end, in microseconds.
    first: Vec<u64>,
    whole: Vec<u64>,
    deltas: u64,
    bytes: u64,
    bad_status: u64,
    errors: u64,
    /// Streams that ended without all their deltas.
    cut: u64,
}

struct Load {
    address: String,
    request: Vec<u8>,
    until: Instant,
    deltas: u64,
}

/// One stream on an open connection.
async fn stream(load: &Load, to: &mut TcpStream, seen: &mut Seen) -> Result<(), Failure> {
    let began = Instant::now();
    to.write_all(&load.request).await?;
    let mut answer = Vec::with_capacity(32 << 10);
    let (mut looked, mut deltas) = (0, 0);
    loop {
        let got = tokio::time::timeout(SILENCE, to.read_buf(&mut answer)).await??;
        if got == 0 {
            return Err("closed".into());
        }
        for _ in memmem::find_iter(&answer[looked..], DELTA) {
            if deltas == 0 {
                seen.first.push(micros(began));
            }
            deltas += 1;
        }
        // What may be the beginning of another one is looked at again; a whole one never is.
        let rest = memmem::rfind(&answer[looked..], DELTA).map_or(looked, |at| looked + at + 1);
        looked = rest.max(answer.len().saturating_sub(DELTA.len() - 1));
        if answer.ends_with(END) {
            break;
        }
    }
    seen.whole.push(micros(began));
    seen.deltas += deltas;
    seen.bytes += answer.len() as u64;
    seen.bad_status += u64::from(!answer.starts_with(b"HTTP/1.1 200"));
    seen.cut += u64::from(deltas != load.deltas);
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

async fn connection(load: &Load) -> Seen {
    let mut seen = Seen::default();
    let Ok(mut to) = TcpStream::connect(&load.address).await else {
        seen.errors += 1;
        return seen;
    };
    let _ = to.set_nodelay(true);
    while Instant::now() < load.until {
        if stream(load, &mut to, &mut seen).await.is_err() {
            seen.errors += 1;
            break;
        }
    }
    seen
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}

async fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path, connections, seconds, deltas] = arguments.as_slice() else {
        return Err("usage: stream_load ADDRESS PATH CONNECTIONS SECONDS DELTAS".into());
    };
    let body = std::fs::read(std::env::var("LOAD_BODY")?)?;
    let header = std::env::var("LOAD_HEADER").unwrap_or_default();
    let header = if header.is_empty() {
        header
    } else {
        format!("{header}\r\n")
    };
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {}\r\n{header}Content-Length: {}\r\n\r\n",
        std::env::var("LOAD_KEY")?,
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(&body);
    let began = Instant::now();
    let load: &'static Load = Box::leak(Box::new(Load {
        address: address.clone(),
        request,
        until: began + Duration::from_secs(seconds.parse()?),
        deltas: deltas.parse()?,
    }));
    let tasks: Vec<_> = (0..connections.parse::<usize>()?)
        .map(|_| tokio::spawn(connection(load)))
        .collect();
    let mut all = Seen::default();
    for task in tasks {
        let seen = task.await?;
        all.first.extend(seen.first);
        all.whole.extend(seen.whole);
        all.deltas += seen.deltas;
        all.bytes += seen.bytes;
        all.bad_status += seen.bad_status;
        all.errors += seen.errors;
        all.cut += seen.cut;
    }
    all.first.sort_unstable();
    all.whole.sort_unstable();
    println!(
        "LOAD {{\"requests\":{},\"duration_us\":{},\"bytes\":{},\"p50_us\":{},\"p99_us\":{},\
         \"first_p50_us\":{},\"first_p99_us\":{},\"deltas\":{},\"errors\":{},\"bad_status\":{}}}",
        all.whole.len(),
        micros(began),
        all.bytes,
        percentile(&all.whole, 50),
        percentile(&all.whole, 99),
        percentile(&all.first, 50),
        percentile(&all.first, 99),
        all.deltas,
        all.errors + all.cut,
        all.bad_status,
    );
    Ok(())
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.map_err(Into::into).and_then(|r| r.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stream_load: {error}");
            ExitCode::FAILURE
        }
    }
}
