//! Writes that do not wait for a reader who does not read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What a pipe takes without waiting once it is said to be writable (pipe(7), `PIPE_BUF`).
const CHUNK: usize = 4096;

/// Writes all of `bytes`. Waits for `timeout` in all at most while nothing is taken; `None` waits for ever.
///
/// The descriptor is shared with other processes, such as a shell, and so is its flag `O_NONBLOCK`: it is left alone.
///
/// # Errors
/// The kernel's; `TimedOut`. A part may have been written, which is [`Broken::written`].
pub fn write_within(fd: impl AsFd, bytes: &[u8], timeout: Option<Duration>) -> Result<(), Broken> {
    let (fd, began, mut written) = (fd.as_fd(), Instant::now(), 0_usize);
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let result = match is_writable(fd, left) {
            Ok(true) => rustix::io::write(fd, rest.get(..CHUNK).unwrap_or(rest)),
            Ok(false) => return Err(Broken { error: io::ErrorKind::TimedOut.into(), written }),
            Err(errno) => Err(errno),
        };
        match result {
            Ok(0) => return Err(Broken { error: io::ErrorKind::WriteZero.into(), written }),
            Ok(count) => written = written.saturating_add(count),
            // A signal; or somebody else has filled it meanwhile.
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(Broken { error: errno.into(), written }),
        }
    }
    Ok(())
}

/// A write that was not completed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Broken {
    /// Why.
    pub error: io::Error,
    /// Bytes written before.
    pub written: usize,
}

/// True also where a write would fail at once.
fn is_writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool, Errno> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], timeout.as_ref()).map(|ready| ready != 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_reader_who_does_not_read_delays_by_the_timeout_and_gets_all_once_he_does() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let bytes = vec![7; 4 << 20];
        let began = Instant::now();
        let broken = write_within(&writer, &bytes, Some(Duration::from_millis(50))).unwrap_err();
        assert_eq!(broken.error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= Duration::from_millis(50) && broken.written < bytes.len());
        let mut back = vec![0; broken.written];
        reader.read_exact(&mut back).unwrap();
        let rest = std::thread::spawn(move || {
            let mut rest = vec![0; 4 << 20];
            reader.read_exact(&mut rest).unwrap();
        });
        write_within(&writer, &bytes, None).unwrap();
        rest.join().unwrap();
    }

    #[test]
    fn an_error_says_how_much_was_written() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let broken = write_within(&full, b"line", None).unwrap_err();
        assert_eq!((broken.error.raw_os_error(), broken.written), (Some(libc::ENOSPC), 0));
    }
}
