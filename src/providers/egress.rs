//! What is said to an egress proxy before the tunnel is there: HTTP `CONNECT` and SOCKS5.
//!
//! Protocol only, over any stream; time limits, name look-up, TLS and sockets are the connector's
//! (`proxy/egress.rs`). Nothing of the provider is resolved here: its name goes to the proxy. Errors
//! never hold the credential, nor text from the proxy.

use std::io;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::target::Target;
use crate::domain::EgressCredential;

/// More than any proxy says before a tunnel; Apache and Squid stop at 8 and 64 KiB of header.
const HEAD_MAX: usize = 16 * 1024;
/// RFC 1928 counts a name in one byte.
const SOCKS5_NAME_MAX: usize = 255;

/// Why a proxy made no tunnel. The texts can follow its name.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke.
    #[error("the connection broke before the tunnel was there: {0}")]
    Io(#[from] io::Error),
    /// The connection ended.
    #[error("it closed the connection before the tunnel was there")]
    Closed,
    /// 401 or 407, or the SOCKS equivalents.
    #[error("it refuses the credential")]
    CredentialRefused,
    /// The same, without a credential.
    #[error("it wants a user and password, and the account's proxy address has none")]
    CredentialMissing,
    /// SOCKS5: a credential is configured, and the proxy does not ask for one. It may choose the way
    /// out by user, so that going on without would be another way out than was meant.
    #[error("it takes no user and password, but the account's proxy address has them")]
    CredentialNotTaken,
    /// 403.
    #[error("it refuses to connect to {0} (status 403)")]
    TargetRefused(String),
    /// 502, 503, 504.
    #[error("it cannot reach {target} (status {status})")]
    TargetUnreachable {
        /// Where to.
        target: String,
        /// The proxy's status.
        status: u16,
    },
    /// Any other status.
    #[error("it answers CONNECT with status {0}")]
    Status(u16),
    /// No HTTP answer.
    #[error("its answer is not HTTP/1")]
    NotHttp,
    /// A header without an end.
    #[error("its answer's header is longer than {HEAD_MAX} bytes")]
    HeadTooLong,
    /// No SOCKS5 answer.
    #[error("its answer is not SOCKS5")]
    NotSocks5,
    /// A SOCKS5 reply code.
    #[error("it cannot connect to {target}: {} (code {code})", reply_name(*code))]
    Socks5Reply {
        /// Where to.
        target: String,
        /// Its code, RFC 1928 section 6.
        code: u8,
    },
    /// A name that SOCKS5 cannot carry.
    #[error("the provider's name is longer than {SOCKS5_NAME_MAX} bytes")]
    NameTooLong,
}

fn closed(error: io::Error) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HandshakeError::Closed,
        _ => HandshakeError::Io(error),
    }
}

fn credential_refused(credential: Option<&EgressCredential>) -> HandshakeError {
    match credential {
        Some(_) => HandshakeError::CredentialRefused,
        None => HandshakeError::CredentialMissing,
    }
}

/// `host:port`, an IPv6 address in brackets.
fn host_and_port(target: &Target) -> String {
    match target.ip() {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", target.port),
        _ => format!("{}:{}", target.host, target.port),
    }
}

/// Asks an HTTP proxy for a tunnel to `target`. On success everything that is written from now on
/// goes to the target; what of its bytes had already arrived with the proxy's answer is returned,
/// and comes before anything read later.
pub async fn http_connect<S>(
    stream: &mut S,
    target: &Target,
    credential: Option<&EgressCredential>,
) -> Result<Vec<u8>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let to = host_and_port(target);
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(EgressCredential { user, password }) = credential {
        let pair = format!("{}:{}", user.expose(), password.expose());
        let pair = STANDARD.encode(pair);
        request.push_str(&format!("Proxy-Authorization: Basic {pair}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;

    let mut read = Vec::with_capacity(1024);
    loop {
        let Some(end) = head_end(&read) else {
            if !may_be_http(&read) {
                return Err(HandshakeError::NotHttp);
            }
            if read.len() >= HEAD_MAX {
                return Err(HandshakeError::HeadTooLong);
            }
            let room = HEAD_MAX - read.len();
            if (&mut *stream).take(room as u64).read_buf(&mut read).await? == 0 {
                return Err(HandshakeError::Closed);
            }
            continue;
        };
        let status = status(&read[..end]).ok_or(HandshakeError::NotHttp)?;
        read.drain(..end);
        match status {
            // Interim: the answer comes behind it. A switch of protocol is none.
            100 | 102..=199 => continue,
            200..=299 => return Ok(read),
            401 | 407 => return Err(credential_refused(credential)),
            403 => return Err(HandshakeError::TargetRefused(to)),
            502..=504 => return Err(HandshakeError::TargetUnreachable { target: to, status }),
            status => return Err(HandshakeError::Status(status)),
        }
    }
}

/// Where a header ends: behind its first empty line.
fn head_end(read: &[u8]) -> Option<usize> {
    let mut line = 0;
    while let Some(newline) = memchr::memchr(b'\n', &read[line..]) {
        let next = line + newline + 1;
        match &read[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => line = next,
        }
    }
    None
}

const HTTP_1: &[u8] = b"HTTP/1.";

fn may_be_http(read: &[u8]) -> bool {
    let known = read.len().min(HTTP_1.len());
    read[..known] == HTTP_1[..known]
}

/// The status of `HTTP/1.0 200 …`.
fn status(head: &[u8]) -> Option<u16> {
    match head.strip_prefix(HTTP_1)? {
        [b'0' | b'1', b' ', a, b, c, b' ' | b'\r' | b'\n', ..] => {
            let digits = [*a, *b, *c];
            let text = std::str::from_utf8(&digits).ok()?;
            let status = text.bytes().all(|d| d.is_ascii_digit()).then_some(text)?;
            status.parse().ok().filter(|status| *status >= 100)
        }
        _ => None,
    }
}

const SOCKS5: u8 = 5;
const NO_CREDENTIAL: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
/// Of the negotiation of RFC 1929.
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Asks a SOCKS5 proxy (RFC 1928) for a tunnel to `target`. With a credential only RFC 1929 is
/// offered: a proxy that would let us in without is not used. No byte of the tunnel is read.
pub async fn socks5_connect<S>(
    stream: &mut S,
    target: &Target,
    credential: Option<&EgressCredential>,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = socks5_request(target)?;
    let offered = match credential {
        Some(_) => USER_AND_PASSWORD,
        None => NO_CREDENTIAL,
    };
    let [version, chosen] = exchange(stream, &[SOCKS5, 1, offered]).await?;
    match (version, chosen) {
        (SOCKS5, chosen) if chosen == offered => {}
        (SOCKS5, NO_METHOD) if credential.is_some() => {
            return Err(HandshakeError::CredentialNotTaken);
        }
        (SOCKS5, NO_METHOD) => return Err(HandshakeError::CredentialMissing),
        _ => return Err(HandshakeError::NotSocks5),
    }
    if let Some(EgressCredential { user, password }) = credential {
        let mut login = vec![LOGIN_VERSION];
        for part in [user, password] {
            let part = part.expose().as_bytes();
            // `EgressProxy::parse` lets nothing longer through.
            let len = u8::try_from(part.len()).map_err(|_| HandshakeError::CredentialRefused)?;
            login.push(len);
            login.extend_from_slice(part);
        }
        // Some servers put the version of SOCKS here; only the status has a meaning.
        let [_version, status] = exchange(stream, &login).await?;
        if status != 0 {
            return Err(HandshakeError::CredentialRefused);
        }
    }
    let [version, code, _reserved, kind] = exchange(stream, &request).await?;
    if version != SOCKS5 {
        return Err(HandshakeError::NotSocks5);
    }
    if code != 0 {
        let target = host_and_port(target);
        return Err(HandshakeError::Socks5Reply { target, code });
    }
    // The address the proxy goes out from, which is of no interest, but has to be read.
    let address = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(stream.read_u8().await.map_err(closed)?),
        _ => return Err(HandshakeError::NotSocks5),
    };
    let mut rest = [0; SOCKS5_NAME_MAX + 2];
    let rest = &mut rest[..address + 2];
    stream.read_exact(rest).await.map_err(closed)?;
    Ok(())
}

fn socks5_request(target: &Target) -> Result<Vec<u8>, HandshakeError> {
    let mut request = vec![SOCKS5, CONNECT, 0];
    match target.ip() {
        Some(IpAddr::V4(ip)) => {
            request.push(IPV4);
            request.extend(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            request.push(IPV6);
            request.extend(ip.octets());
        }
        None => {
            let name = target.host.as_bytes();
            let len = u8::try_from(name.len()).map_err(|_| HandshakeError::NameTooLong)?;
            request.extend([NAME, len]);
            request.extend(name);
        }
    }
    request.extend(target.port.to_be_bytes());
    Ok(request)
}

/// Says something and reads the fixed part of the answer.
async fn exchange<S, const N: usize>(
    stream: &mut S,
    message: &[u8],
) -> Result<[u8; N], HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(message).await?;
    stream.flush().await?;
    let mut answer = [0; N];
    stream.read_exact(&mut answer).await.map_err(closed)?;
    Ok(answer)
}

fn reply_name(code: u8) -> &'static str {
    match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "unknown reason",
    }
}

#[cfg(test)]
mod tests;
