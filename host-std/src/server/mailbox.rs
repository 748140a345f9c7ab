//! A thread's mailbox: commands in order, and the eventfd that wakes the thread.
//!
//! It is bounded. Whoever sends faster than the thread takes waits, and a client whose messages lead to commands waits with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::notify::Waker;

/// Commands that wait for the thread. More than the senders that there are: most of them wait for their answers.
const COMMANDS_MAX: usize = 64;

/// The senders' end. Any thread may use it.
pub(super) struct Mailbox<C> {
    commands: SyncSender<C>,
    waker: Arc<Waker>,
}

/// The thread's end.
pub(super) struct Inbox<C> {
    commands: Receiver<C>,
    waker: Arc<Waker>,
}

/// A mailbox and its inbox.
pub(super) fn mailbox<C>() -> io::Result<(Mailbox<C>, Inbox<C>)> {
    let (commands, received) = sync_channel(COMMANDS_MAX);
    let waker = Arc::new(Waker::new()?);
    Ok((Mailbox { commands, waker: Arc::clone(&waker) }, Inbox { commands: received, waker }))
}

impl<C> Mailbox<C> {
    /// Sends a command, once there is room for it.
    pub(super) fn send(&self, command: C) {
        // A thread that has ended has said why; whoever waits for its answer finds that it does not come.
        let _ = self.commands.send(command);
        self.waker.wake();
    }

    /// Sends a command and waits for its answer. `None` if the thread has ended.
    pub(super) fn call<T>(&self, command: impl FnOnce(Sender<T>) -> C) -> Option<T> {
        let (answer, answered) = channel();
        self.send(command(answer));
        answered.recv().ok()
    }

    /// Has the thread look at its work, without a command.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl<C> Inbox<C> {
    /// The oldest command, if there is one.
    pub(super) fn take(&self) -> Option<C> {
        self.commands.try_recv().ok()
    }

    /// The descriptor has been seen readable: it can wake the thread again.
    pub(super) fn woken(&self) {
        self.waker.woken();
    }
}

impl<C> AsFd for Inbox<C> {
    /// Readable when a command has come since [`Inbox::woken`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}
