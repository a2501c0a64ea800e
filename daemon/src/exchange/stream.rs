//! One open stream: frames in, frames out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use wgmesh_core::exchange::{MAX_FRAME_BYTES, SessionEvent, SessionId, Target};

use super::Happened;

/// How long a frame may take from its first byte to its last.
pub(super) const FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// How long the other side may take for frames that we write; longer than `TCP_USER_TIMEOUT` of nothing at all.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);

/// How long a stream takes to say that it ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What a quiet stream keeps to read into: a heartbeat fits.
const READ_BYTES: usize = 512;

const LENGTH_BYTES: usize = 4;

/// A stream whose other end has the secret.
pub(super) struct Stream {
    pub(super) tls: TlsStream<TcpStream>,
    pub(super) remote: SocketAddr,
    pub(super) dialed: Option<Target>,
    pub(super) exporter: [u8; 32],
}

/// Why a stream ended, in words.
pub(super) struct Ended(pub(super) String);

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self(super::tls::explain(&error))
    }
}

impl Stream {
    /// Reads and writes until either side ends it, or until `frames` has no sender any more and is written.
    pub(super) async fn run(
        self,
        id: SessionId,
        frames: mpsc::Receiver<Vec<u8>>,
        happens: &mpsc::Sender<Happened>,
    ) -> Ended {
        let (reader, writer) = tokio::io::split(self.tls);
        tokio::select! {
            ended = read(id, reader, happens) => ended,
            ended = write(writer, frames) => ended,
        }
    }
}

async fn read(id: SessionId, mut reader: impl AsyncRead + Unpin, happens: &mpsc::Sender<Happened>) -> Ended {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let bytes = match next_frame(&mut reader, &mut buffer).await {
            Ok(bytes) => bytes,
            Err(ended) => return ended,
        };
        if happens.send(Happened::Told(SessionEvent::Frame { id, bytes })).await.is_err() {
            return Ended("the exchange is gone".to_owned());
        }
    }
}

/// Reads the next frame. What comes after it stays in `buffer`, which grows with what really came in, whatever a
/// length claims.
async fn next_frame(reader: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<Vec<u8>, Ended> {
    if buffer.is_empty() && reader.read_buf(buffer).await? == 0 {
        return Err(Ended("the other side has closed it".to_owned()));
    }
    let frame = timeout(FRAME_PATIENCE, rest_of_frame(reader, buffer)).await;
    frame.unwrap_or_else(|_| Err(Ended("a frame took too long".to_owned())))
}

async fn rest_of_frame(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<Vec<u8>, Ended> {
    loop {
        if let Some((length, rest)) = buffer.split_first_chunk::<LENGTH_BYTES>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > MAX_FRAME_BYTES {
                return Err(Ended(format!("a frame of {length} bytes")));
            }
            if let Some(frame) = rest.get(..length) {
                let frame = frame.to_vec();
                *buffer = rest[length..].to_vec();
                buffer.reserve(READ_BYTES);
                return Ok(frame);
            }
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(Ended("the other side has closed it within a frame".to_owned()));
        }
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Vec<u8>>) -> Ended {
    while let Some(frame) = frames.recv().await {
        let written = timeout(WRITE_PATIENCE, write_all(&mut writer, frame, &mut frames)).await;
        if let Err(error) = written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            return error.into();
        }
    }
    // Best effort: the other side notices either way.
    timeout(CLOSE_PATIENCE, writer.shutdown()).await.ok();
    Ended("closed by this side".to_owned())
}

/// Writes a frame and those that wait behind it, and sends them off together.
async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    first: Vec<u8>,
    frames: &mut mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut next = Some(first);
    while let Some(frame) = next {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        writer.write_all(&[&length.to_be_bytes(), frame.as_slice()].concat()).await?;
        next = frames.try_recv().ok();
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn framed(content: &[u8]) -> Vec<u8> {
        [&u32::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    #[tokio::test]
    async fn frames_are_found_however_the_stream_is_cut() {
        let (mut near, mut far) = duplex(1 << 20);
        let contents = [vec![], vec![1], vec![2; 700], vec![3; MAX_FRAME_BYTES]];
        let all: Vec<u8> = contents.iter().flat_map(|content| framed(content)).collect();
        let sending = tokio::spawn(async move {
            for part in all.chunks(613) {
                near.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            near
        });
        let mut buffer = Vec::with_capacity(READ_BYTES);
        for content in contents {
            let Ok(frame) = next_frame(&mut far, &mut buffer).await else { panic!("no frame") };
            assert!(frame == content);
        }
        assert!(buffer.capacity() <= 2 * READ_BYTES, "a quiet stream keeps little");
        drop(sending.await);
        assert!(next_frame(&mut far, &mut buffer).await.is_err());
    }

    #[tokio::test]
    async fn a_frame_past_the_cap_is_refused_by_its_length_alone() {
        let (mut near, mut far) = duplex(64);
        near.write_all(&65_537_u32.to_be_bytes()).await.unwrap();
        let Err(Ended(reason)) = next_frame(&mut far, &mut Vec::new()).await else { panic!("a frame") };
        assert_eq!(reason, "a frame of 65537 bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_trickles_ends_the_stream() {
        let (mut near, mut far) = duplex(64);
        let trickle = tokio::spawn(async move {
            for byte in framed(&[7; 100]) {
                near.write_all(&[byte]).await.ok();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let started = tokio::time::Instant::now();
        let Err(Ended(reason)) = next_frame(&mut far, &mut Vec::new()).await else { panic!("a frame") };
        assert_eq!((reason.as_str(), started.elapsed()), ("a frame took too long", FRAME_PATIENCE));
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_reads_nothing_holds_a_stream_no_longer_than_its_patience() {
        let (near, _far) = duplex(64);
        let (sender, frames) = mpsc::channel(4);
        sender.try_send(vec![0; 1000]).unwrap();
        drop(sender);
        let started = tokio::time::Instant::now();
        write(near, frames).await;
        assert_eq!(started.elapsed(), WRITE_PATIENCE);
    }
}
