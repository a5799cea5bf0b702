//! One connection, plain or TLS, that can also be reset.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A TCP connection with or without TLS on it.
pub(crate) enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Link::Plain(tcp) => tcp,
            Link::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Makes the coming close an RST in place of a FIN.
    pub(crate) fn reset_on_close(&self) {
        // Fails only on a socket that is already gone, which is what we are after.
        let _ = self.tcp().set_zero_linger();
    }
}

/// The other side of a connection, as the system knows it: asked where a task that would find out by
/// reading may not have been run yet.
pub(crate) struct Peer(OwnedFd);

impl Peer {
    /// Of this connection, which stays open as long as this lives.
    pub(crate) fn of(link: &Link) -> io::Result<Self> {
        link.tcp().as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether it has closed or reset the connection, whatever of it is still unread here.
    pub(crate) fn has_left(&self) -> bool {
        let mut asked = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let at_once = Timespec::default();
        matches!(poll(&mut asked, Some(&at_once)), Ok(1..))
    }
}

macro_rules! delegate {
    ($self:ident, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Link::Plain(tcp) => Pin::new(tcp).$method($($argument),*),
            Link::Tls(tls) => Pin::new(tls.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }
}
