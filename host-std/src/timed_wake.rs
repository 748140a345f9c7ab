//! The wake-up of a layer that holds something back until a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// One descriptor that is readable when that of the handle below is, or when the time has come.
pub(crate) struct TimedWake {
    epoll: OwnedFd,
    timer: OwnedFd,
}

impl TimedWake {
    /// Watches `inner`, and no time yet.
    pub(crate) fn new(inner: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, inner, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        Ok(Self { epoll, timer })
    }

    /// Sets the time anew, or none; what the timer has signalled before is forgotten.
    pub(crate) fn set(&self, after: Option<Duration>) {
        // All zeroes would stop the timer.
        let after = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(after).unwrap_or(none);
        let spec = Itimerspec { it_interval: none, it_value: value };
        // It cannot fail: the descriptor is a timer's and the time is in range.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }
}

impl AsFd for TimedWake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
