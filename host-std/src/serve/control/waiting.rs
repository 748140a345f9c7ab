//! Commands that may take long: a line says every so often what they wait for.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// No client hears nothing for longer than a second.
const SAY_EVERY: Duration = Duration::from_millis(800);

/// Does `work` on a thread of its own, and calls `say` for as long as it is not done.
pub(super) fn with_patience<T: Send>(
    work: impl FnOnce() -> T + Send,
    mut say: impl FnMut(),
) -> io::Result<T> {
    thread::scope(|scope| {
        let (done, result) = channel();
        let run = move || {
            // Somebody waits for it until this thread has ended.
            let _ = done.send(work());
        };
        let thread = thread::Builder::new().name("control".into()).spawn_scoped(scope, run)?;
        loop {
            match result.recv_timeout(SAY_EVERY) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => say(),
                Err(RecvTimeoutError::Disconnected) => {
                    // Joined here, or the scope panics as well.
                    let _ = thread.join();
                    return Err(io::Error::other("the command's thread has panicked"));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_hears_of_it_until_it_is_done() {
        let mut said = 0;
        let done = with_patience(|| thread::sleep(SAY_EVERY * 5 / 2), || said += 1);
        assert!(done.is_ok());
        assert_eq!(said, 2);
        assert_eq!(with_patience(|| 7, || unreachable!("it is done at once")).unwrap(), 7);
    }

    #[test]
    fn a_command_that_panics_is_an_error() {
        let result: Result<(), _> = with_patience(|| std::panic::resume_unwind(Box::new(())), || {});
        result.unwrap_err();
    }
}
