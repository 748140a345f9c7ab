//! Interrupt moderation: how long a message waits for more requests of the guest.

use std::time::{Duration, Instant};

/// How long a message waits, whatever the guest does meanwhile.
const WAITING_MAX: Duration = Duration::from_micros(800);
/// At most so many looks of the guest's handler from one wait for more to the next: a guest with one request at a time is kept
/// waiting once in so many.
const PATIENCE_MAX: u32 = 127;

/// When messages are signalled. A guest that has many requests under way sends new ones as it hears that old ones have ended;
/// if it heard of each by itself, most of its time would go into its interrupt handler, each of whose looks at a register is a
/// message to us and back. So a message waits until as many requests have come as the guest heard of the last time: that one
/// it has answered then. Now and then it waits for twice as many, and goes on so while more come: where the host is quick, the
/// guest would else be interrupted before it can send a second one. A guest whose handler reads no register never waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moderation {
    /// How many have to come.
    expected: u32,
    /// Of how many the guest heard the last time.
    heard: u32,
    /// After so many looks of the handler a message waits for more again.
    content: u32,
    /// What that is set to after a wait for more that was in vain.
    patience: u32,
    /// The handler has not looked since the last message.
    unheard: bool,
    /// What [`Requests`] was when it did.
    last: Requests,
    /// Since when a message has been waiting.
    since: Option<Instant>,
}

/// How many requests have come and how many have ended, wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    pub(super) begun: u32,
    pub(super) ended: u32,
}

impl Moderation {
    /// Whether a message has to wait. The clock is looked at only if it may have to.
    pub(super) fn waits(&mut self, requests: Requests, clock: impl FnOnce() -> Instant) -> bool {
        if requests.begun.wrapping_sub(self.last.begun) >= self.expected {
            return false;
        }
        let now = clock();
        now.duration_since(*self.since.get_or_insert(now)) < WAITING_MAX
    }

    /// What was due has been signalled.
    pub(super) fn signalled(&mut self) {
        (self.unheard, self.since) = (true, None);
    }

    /// The guest has read a register: its handler, if that is the first time since a message.
    pub(super) fn heard(&mut self, requests: Requests) {
        if !std::mem::take(&mut self.unheard) {
            return;
        }
        let heard = requests.ended.wrapping_sub(self.last.ended);
        if self.expected > self.heard {
            // More were waited for.
            self.patience = if heard > self.heard { 0 } else { (self.patience * 2 + 1).min(PATIENCE_MAX) };
            self.content = self.patience;
        }
        (self.heard, self.last) = (heard, requests);
        self.expected = if self.content == 0 { heard.saturating_mul(2) } else { heard };
        self.content = self.content.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many have come, and each has ended at once.
    fn all(n: u32) -> Requests {
        Requests { begun: n, ended: n }
    }

    /// A message is due, and no time passes. Whether it is signalled.
    fn due(moderation: &mut Moderation, n: u32) -> bool {
        let now = moderation.since.unwrap_or_else(Instant::now);
        due_at(moderation, n, now)
    }

    fn due_at(moderation: &mut Moderation, n: u32, now: Instant) -> bool {
        let signalled = !moderation.waits(all(n), || now);
        if signalled {
            moderation.signalled();
        }
        signalled
    }

    /// The guest's handler looks twice, as that of Linux does: at what is pending, and at what has ended.
    fn look(moderation: &mut Moderation, n: u32) {
        moderation.heard(all(n));
        moderation.heard(all(n));
    }

    #[test]
    fn the_message_of_one_request_at_a_time_seldom_waits() {
        let mut moderation = Moderation::default();
        let mut waited = 0;
        for n in 1..=10_000 {
            if !due(&mut moderation, n) {
                waited += 1;
                // The guest is quiet.
                moderation.signalled();
            }
            look(&mut moderation, n);
        }
        assert!((1..90).contains(&waited), "{waited} of 10,000");
    }

    /// A guest with 32 under way, which is interrupted after each request if it can be.
    #[test]
    fn the_messages_of_many_requests_become_few() {
        let mut moderation = Moderation::default();
        let (mut n, mut messages) = (0, 0);
        while n < 10_000 {
            let all_of_them = n + 32;
            n += 1;
            while !due(&mut moderation, n) {
                if n == all_of_them {
                    moderation.signalled();
                    break;
                }
                n += 1;
            }
            messages += 1;
            look(&mut moderation, n);
        }
        assert!(messages < 10_000 / 32 + 10, "{messages} for 10,000");
    }

    #[test]
    fn a_message_waits_for_as_many_requests_as_the_guest_heard_of() {
        let mut moderation = Moderation { content: 9, ..Moderation::default() };
        assert!(due(&mut moderation, 8), "nothing is known of this guest yet");
        // Two came before the handler looked, and of three the host has not answered one.
        moderation.heard(Requests { begun: 11, ended: 10 });
        for n in 12..21 {
            assert!(!due(&mut moderation, n), "request {n}");
        }
        assert!(due(&mut moderation, 21), "10 have come");
        moderation.heard(Requests { begun: 21, ended: 12 });
        assert!(!due(&mut moderation, 22));
        assert!(due(&mut moderation, 23), "2 have come, as 2 had ended");
    }

    #[test]
    fn after_a_quiet_guest_a_message_waits_for_no_more_than_it_sent() {
        let mut moderation = Moderation::default();
        assert!(due(&mut moderation, 8));
        look(&mut moderation, 8);
        assert!(!due(&mut moderation, 9));
        moderation.signalled();
        look(&mut moderation, 9);
        assert!(due(&mut moderation, 10), "one at a time");
    }

    #[test]
    fn a_message_waits_no_longer_than_it_may() {
        let mut moderation = Moderation::default();
        assert!(due(&mut moderation, 8));
        look(&mut moderation, 8);
        let now = Instant::now();
        let nearly = now + WAITING_MAX - Duration::from_nanos(1);
        assert!(!due_at(&mut moderation, 9, now));
        assert!(!due_at(&mut moderation, 10, nearly));
        assert!(due_at(&mut moderation, 10, now + WAITING_MAX));
    }

    #[test]
    fn a_guest_whose_handler_reads_nothing_never_waits() {
        let mut moderation = Moderation::default();
        for n in 1..10 {
            assert!(due(&mut moderation, n * 8));
        }
    }

    #[test]
    fn counts_of_requests_wrap() {
        let mut moderation = Moderation { content: 9, ..Moderation::default() };
        assert!(due(&mut moderation, u32::MAX - 3));
        look(&mut moderation, u32::MAX - 3);
        moderation.expected = 3;
        assert!(!due(&mut moderation, u32::MAX - 1));
        assert!(due(&mut moderation, 0));
        moderation.heard(all(1));
        assert_eq!(moderation.heard, 5);
    }
}
