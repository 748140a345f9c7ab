//! A thread's mailbox: commands in order, and the eventfd that wakes the thread.
//!
//! It is bounded. Whoever sends faster than the thread takes waits, and a client whose messages lead to commands waits with it.
//! Whoever waits for the thread frees it from a descriptor that its client makes it hang in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use super::interrupt::Interruptible;
use super::notify::Waker;

/// Commands that wait for the thread. More than the senders that there are: most of them wait for their answers.
const COMMANDS_MAX: usize = 64;
/// How long a thread may take before it is taken to hang. One that does not has its call interrupted, and makes it again.
const HANGS_AFTER: Duration = Duration::from_millis(200);

/// The senders' end. Any thread may use it.
pub(super) struct Mailbox<C> {
    commands: SyncSender<C>,
    thread: Arc<Thread>,
}

/// The thread's end.
pub(super) struct Inbox<C> {
    commands: Receiver<C>,
    thread: Arc<Thread>,
}

struct Thread {
    waker: Waker,
    interruptible: Interruptible,
}

/// A mailbox and its inbox.
pub(super) fn mailbox<C>() -> io::Result<(Mailbox<C>, Inbox<C>)> {
    let (commands, received) = sync_channel(COMMANDS_MAX);
    let thread = Arc::new(Thread { waker: Waker::new()?, interruptible: Interruptible::default() });
    Ok((Mailbox { commands, thread: Arc::clone(&thread) }, Inbox { commands: received, thread }))
}

impl<C> Mailbox<C> {
    /// Sends a command, once there is room for it.
    pub(super) fn send(&self, command: C) {
        let mut command = command;
        // A thread that has ended has said why; whoever waits for its answer finds that it does not come.
        while let Err(TrySendError::Full(again)) = self.commands.try_send(command) {
            command = again;
            std::thread::sleep(Duration::from_millis(1));
            self.interrupt();
        }
        self.thread.waker.wake();
    }

    /// Sends a command and waits for its answer. `None` if the thread has ended.
    pub(super) fn call<T>(&self, command: impl FnOnce(Sender<T>) -> C) -> Option<T> {
        let (answer, answered) = channel();
        self.send(command(answer));
        self.wait(&answered)
    }

    /// Waits for an answer to a command that was sent. `None` if it does not come: the thread has ended.
    pub(super) fn wait<T>(&self, answered: &Receiver<T>) -> Option<T> {
        loop {
            match answered.recv_timeout(HANGS_AFTER) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) => self.interrupt(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Has the thread look at its work, without a command.
    pub(super) fn wake(&self) {
        self.thread.waker.wake();
    }

    /// Ends the system call that the thread waits in, if it does.
    pub(super) fn interrupt(&self) {
        self.thread.interruptible.interrupt();
    }
}

impl<C> Inbox<C> {
    /// The calling thread is the one whose inbox this is.
    pub(super) fn begin(&self) {
        self.thread.interruptible.begin();
    }

    /// The oldest command, if there is one.
    pub(super) fn take(&self) -> Option<C> {
        self.commands.try_recv().ok()
    }

    /// The descriptor has been seen readable: it can wake the thread again.
    pub(super) fn woken(&self) {
        self.thread.waker.woken();
    }
}

impl<C> AsFd for Inbox<C> {
    /// Readable when a command has come since [`Inbox::woken`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.thread.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::pipe::pipe;

    use super::*;
    use crate::server::client_fd::ClientFd;

    enum Command {
        Ping(Sender<()>),
    }

    /// The client undoes the flag that its descriptor does not block, and nobody reads or writes the other end.
    #[test]
    fn a_thread_that_hangs_in_its_client_s_descriptor_answers_whoever_waits() {
        let (reader, writer) = pipe().unwrap();
        while rustix::io::write(&writer, &[0; 4096]).is_ok_and(|bytes| bytes == 4096) {
            fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        }
        let call = ClientFd::new(writer.try_clone().unwrap()).unwrap();
        fcntl_setfl(&writer, OFlags::empty()).unwrap();
        let (mailbox, inbox) = mailbox().unwrap();
        let thread = std::thread::spawn(move || {
            inbox.begin();
            call.signal();
            loop {
                if let Some(Command::Ping(done)) = inbox.take() {
                    return done.send(()).unwrap();
                }
            }
        });
        let begun = Instant::now();
        assert_eq!(mailbox.call(Command::Ping), Some(()));
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread.join().unwrap();
        drop::<(OwnedFd, OwnedFd)>((reader, writer));
    }
}
