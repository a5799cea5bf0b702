//! The fake provider as a program, for the SDK tests and the load comparison: answers every
//! request as `tollgate_test_support::echo` describes. Prints its address alone on the first
//! line of stdout.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tollgate_test_support::{Alpn, Answer, FakeUpstream, Received, TestCa, echo};

/// A fake provider, like OpenAI and like Anthropic; special model names ask for errors, delays and tool calls.
#[derive(Parser)]
struct Arguments {
    /// Port of 127.0.0.1, 0 = a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Speak TLS (HTTP/2 and HTTP/1.1) with a new certificate for localhost.
    #[arg(long)]
    tls: bool,
    /// Where ca.pem, cert.pem and key.pem are written with --tls.
    #[arg(long, default_value = ".")]
    tls_dir: PathBuf,
    /// Answer 413 to a longer body, 0 = never.
    #[arg(long, default_value_t = 0)]
    max_body: u64,
    /// Accept only this bearer token or x-api-key, and answer 401 to others; a token
    /// `sk-fake-STATUS` is answered with that status either way.
    #[arg(long)]
    key: Option<String>,
    /// Print a line for every request to stderr: method, target, bytes, model.
    #[arg(long)]
    verbose: bool,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match arguments.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
        threads => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build(),
    };
    let outcome = runtime.and_then(|runtime| runtime.block_on(run(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-upstream: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> std::io::Result<()> {
    let mut builder = FakeUpstream::builder()
        .bind(SocketAddr::from(([127, 0, 0, 1], arguments.port)))
        .forgetful();
    if arguments.tls {
        let ca = TestCa::new();
        ca.write(&arguments.tls_dir)?;
        builder = builder.tls(&ca, Alpn::Both);
    }
    let upstream = builder.start().await?;
    let (key, max_body, verbose) = (arguments.key, arguments.max_body, arguments.verbose);
    upstream.handle(move |request| {
        if verbose {
            eprintln!(
                "{} {} {} {}",
                request.method,
                request.target,
                request.body_bytes,
                request.model()
            );
        }
        answer(request, key.as_deref(), max_body)
    });
    println!("{}", upstream.url());
    tokio::signal::ctrl_c().await
}

fn answer(request: &Received, key: Option<&str>, max_body: u64) -> Answer {
    let credential = request.credential().unwrap_or_default();
    let asked = credential.strip_prefix("sk-fake-");
    if let Some(status) = asked.and_then(|status| status.parse().ok()) {
        return echo::error(request, status, "fake_error");
    }
    if key.is_some_and(|key| key != credential) {
        return echo::error(request, 401, "invalid_api_key");
    }
    if max_body > 0 && request.body_bytes > max_body {
        return echo::error(request, 413, "request_too_large");
    }
    echo::answer(request)
}
