//! Interrupt moderation: delays an MSI so that one interrupt reports several completions. The quiet time, after which a
//! delayed message is sent anyway, is in `worker/idle.rs`.

use std::time::{Duration, Instant};

/// Longest delay of a message.
const WAITING_MAX: Duration = Duration::from_micros(800);
/// Most handler runs between two probes (a probe waits for twice as many requests). For a guest with one request at a
/// time, about one interrupt in this many is delayed.
const PROBE_INTERVAL_MAX: u32 = 127;

/// Decides when a message is signalled.
///
/// A guest with many requests in flight submits new ones when it learns of completions. With one interrupt per completion it
/// would spend most of its time in its handler, where each register read is a message to this server and back. So a message
/// waits until as many new requests have arrived as completed before the handler's last run: by then the guest has replaced
/// those. From time to time a probe waits for twice as many, and repeats while more arrive: a fast host would otherwise
/// interrupt the guest before it can submit a second request. A guest that reads no register after an interrupt is never delayed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moderation {
    /// New requests at which a message is signalled; 0: at once.
    threshold: u32,
    /// Requests that completed between the handler's last two runs.
    completed: u32,
    /// Handler runs until the next probe.
    runs_to_probe: u32,
    /// Handler runs between two probes. About doubles after a probe that brought no more requests; 0 after one that did.
    probe_interval: u32,
    /// A message was signalled and the guest has not read a register since.
    unheard: bool,
    /// The counts when the handler last ran.
    last: Requests,
    /// When the delay of the present message began.
    since: Option<Instant>,
}

/// Counts of requests submitted and completed, wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    pub(super) begun: u32,
    pub(super) ended: u32,
}

impl Moderation {
    /// Whether a message that is due has to wait. Reads the clock only if too few requests have arrived.
    pub(super) fn waits(&mut self, requests: Requests, clock: impl FnOnce() -> Instant) -> bool {
        if requests.begun.wrapping_sub(self.last.begun) >= self.threshold {
            return false;
        }
        let now = clock();
        now.duration_since(*self.since.get_or_insert(now)) < WAITING_MAX
    }

    /// Records that all due messages were signalled.
    pub(super) fn signalled(&mut self) {
        (self.unheard, self.since) = (true, None);
    }

    /// Records a register read. The first one after a message is taken for the guest's interrupt handler.
    pub(super) fn register_read(&mut self, requests: Requests) {
        if !std::mem::take(&mut self.unheard) {
            return;
        }
        let completed = requests.ended.wrapping_sub(self.last.ended);
        if self.threshold > self.completed {
            // This was a probe.
            self.probe_interval = if completed > self.completed {
                0
            } else {
                (self.probe_interval * 2 + 1).min(PROBE_INTERVAL_MAX)
            };
            self.runs_to_probe = self.probe_interval;
        }
        (self.completed, self.last) = (completed, requests);
        self.threshold = if self.runs_to_probe == 0 { completed.saturating_mul(2) } else { completed };
        self.runs_to_probe = self.runs_to_probe.saturating_sub(1);
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
        moderation.register_read(all(n));
        moderation.register_read(all(n));
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
        let mut moderation = Moderation { runs_to_probe: 9, ..Moderation::default() };
        assert!(due(&mut moderation, 8), "nothing is known of this guest yet");
        // Two came before the handler looked, and of three the host has not answered one.
        moderation.register_read(Requests { begun: 11, ended: 10 });
        for n in 12..21 {
            assert!(!due(&mut moderation, n), "request {n}");
        }
        assert!(due(&mut moderation, 21), "10 have come");
        moderation.register_read(Requests { begun: 21, ended: 12 });
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
        let mut moderation = Moderation { runs_to_probe: 9, ..Moderation::default() };
        assert!(due(&mut moderation, u32::MAX - 3));
        look(&mut moderation, u32::MAX - 3);
        moderation.threshold = 3;
        assert!(!due(&mut moderation, u32::MAX - 1));
        assert!(due(&mut moderation, 0));
        moderation.register_read(all(1));
        assert_eq!(moderation.completed, 5);
    }
}
