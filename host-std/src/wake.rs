//! The wake-up of a thread by an eventfd.

use std::os::fd::BorrowedFd;

/// Makes an eventfd of ours readable. A signal that comes in between loses nothing: whoever sleeps there may have no other wake-up.
pub(crate) fn signal(eventfd: BorrowedFd<'_>) {
    signal_by(|| rustix::io::write(eventfd, &1_u64.to_ne_bytes()));
}

/// The write fails otherwise only where the counter is full, and then the eventfd is readable.
fn signal_by(write: impl FnMut() -> rustix::io::Result<usize>) {
    let _ = rustix::io::retry_on_intr(write);
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn an_interrupted_signal_is_sent_again() {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let mut interruptions = 3;
        signal_by(|| {
            if interruptions != 0 {
                interruptions -= 1;
                return Err(Errno::INTR);
            }
            rustix::io::write(&wake, &1_u64.to_ne_bytes())
        });
        assert_eq!(rustix::io::read(&wake, &mut [0_u8; 8]), Ok(8));
    }
}
