//! When a request may begin: token buckets over a clock that is the caller's.

use blk_core::op::Op;

/// A moment, in ns since the limiter was made.
pub(super) type Ns = u64;

/// Refill rate and capacity of a bucket. Neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    /// `per_second` tokens a second, of which `burst` may accumulate. By default that is what a tenth of a second brings, as
    /// with QEMU. `None` if either is 0.
    #[must_use]
    pub fn new(per_second: u64, burst: Option<u64>) -> Option<Self> {
        let burst = burst.unwrap_or_else(|| (per_second / 10).max(1));
        (per_second != 0 && burst != 0).then_some(Self { per_second, burst })
    }

    /// Tokens a second.
    #[must_use]
    pub const fn per_second(self) -> u64 {
        self.per_second
    }

    /// Tokens that may accumulate.
    #[must_use]
    pub const fn burst(self) -> u64 {
        self.burst
    }

    /// How long so many tokens take to come, rounded up.
    fn time(self, tokens: u64) -> Ns {
        let ns = (u128::from(tokens) * 1_000_000_000).div_ceil(u128::from(self.per_second));
        Ns::try_from(ns).unwrap_or(Ns::MAX)
    }

    /// The same, rounded down. What is waited for is rounded up and what is not waited for is rounded down: never more is let
    /// through than the rate.
    fn time_spared(self, tokens: u64) -> Ns {
        let ns = u128::from(tokens) * 1_000_000_000 / u128::from(self.per_second);
        Ns::try_from(ns).unwrap_or(Ns::MAX)
    }
}

/// Limits of an image. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations.
    pub iops: Option<Rate>,
    /// Bytes.
    pub bps: Option<Rate>,
}

/// The tokens that an operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) operations: u64,
    pub(super) bytes: u64,
}

impl Cost {
    pub(super) fn of(op: Op) -> Self {
        let bytes = match op {
            Op::Read { extent } | Op::Write { extent, .. } | Op::WriteZeroes { extent, .. } => {
                extent.bytes().unwrap_or(u64::MAX)
            }
            Op::Discard { .. }
            | Op::Flush
            | Op::Hold { .. }
            | Op::LoadState { .. }
            | Op::StoreState { .. } => 0,
        };
        Self { operations: 1, bytes }
    }
}

/// A bucket, by the moment at which it is full if nothing more is taken: before that, a token is missing for each
/// `1 / per_second` s, and more of them than it holds are a debt.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    full_at: Ns,
}

impl Bucket {
    /// When so many tokens are there; for more than it ever holds, when it is full.
    fn ready(&self, tokens: u64) -> Ns {
        let spare = self.rate.burst - tokens.min(self.rate.burst);
        self.full_at.saturating_sub(self.rate.time_spared(spare))
    }

    fn take(&mut self, at: Ns, tokens: u64) {
        self.full_at = self.full_at.max(at).saturating_add(self.rate.time(tokens));
    }
}

/// The buckets of an image. An operation reserves its tokens when it comes, so that whoever came first goes first.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    iops: Option<Bucket>,
    bps: Option<Bucket>,
}

impl Schedule {
    /// Buckets that are full.
    pub(super) fn full(limits: &Limits, now: Ns) -> Self {
        let bucket = |rate| Bucket { rate, full_at: now };
        Self { iops: limits.iops.map(bucket), bps: limits.bps.map(bucket) }
    }

    /// Buckets that are empty: a limit that is changed often gives no burst each time.
    pub(super) fn empty(limits: &Limits, now: Ns) -> Self {
        let bucket = |rate: Rate| Bucket { rate, full_at: now.saturating_add(rate.time(rate.burst)) };
        Self { iops: limits.iops.map(bucket), bps: limits.bps.map(bucket) }
    }

    /// When an operation that comes now may begin. The tokens are taken as of then: taken as of now, those that wait for
    /// bytes would use up operations that nobody does meanwhile, and then come all at once.
    pub(super) fn reserve(&mut self, now: Ns, cost: Cost) -> Ns {
        let mut buckets = [(&mut self.iops, cost.operations), (&mut self.bps, cost.bytes)];
        // What takes no byte does not wait for a debt of bytes.
        let taken = || buckets.iter().filter(|(_, tokens)| *tokens != 0);
        let ready = taken().filter_map(|(bucket, tokens)| Some(bucket.as_ref()?.ready(*tokens)));
        let due = ready.fold(now, Ns::max);
        for (bucket, tokens) in buckets.iter_mut().filter(|(_, tokens)| *tokens != 0) {
            if let Some(bucket) = bucket {
                bucket.take(due, *tokens);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk_core::units::Extent;
    use proptest::prelude::*;

    const SECOND: Ns = 1_000_000_000;

    fn limits(iops: Option<(u64, u64)>, bps: Option<(u64, u64)>) -> Limits {
        let rate = |(per_second, burst)| Rate::new(per_second, Some(burst)).unwrap();
        Limits { iops: iops.map(rate), bps: bps.map(rate) }
    }

    const ONE: Cost = Cost { operations: 1, bytes: 4096 };

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut schedule = Schedule::full(&limits(Some((100, 5)), None), 0);
        let due: Vec<_> = (0..8).map(|_| schedule.reserve(0, ONE)).collect();
        let step = SECOND / 100;
        assert_eq!(due, [0, 0, 0, 0, 0, step, 2 * step, 3 * step]);
        // All of it, and no more, has come back after a rest.
        let due: Vec<_> = (0..6).map(|_| schedule.reserve(SECOND, ONE)).collect();
        assert_eq!(due, [SECOND, SECOND, SECOND, SECOND, SECOND, SECOND + step]);
    }

    #[test]
    fn a_request_larger_than_the_burst_begins_when_the_bucket_is_full_and_leaves_a_debt() {
        let mut schedule = Schedule::full(&limits(None, Some((1000, 100))), 0);
        let large = Cost { operations: 1, bytes: 5000 };
        let small = Cost { operations: 1, bytes: 1 };
        assert_eq!(schedule.reserve(0, small), 0);
        assert_eq!(schedule.reserve(0, large), SECOND / 1000, "one token is missing");
        // 5001 have been taken, 100 were there, and one more is wanted.
        assert_eq!(schedule.reserve(0, small), SECOND * 4902 / 1000);
    }

    #[test]
    fn a_flush_and_a_discard_are_operations_without_bytes_and_do_not_wait_for_any() {
        let extent = Extent::new(0, 8);
        assert_eq!(Cost::of(Op::Flush), Cost { operations: 1, bytes: 0 });
        assert_eq!(Cost::of(Op::Discard { extent }), Cost { operations: 1, bytes: 0 });
        assert_eq!(Cost::of(Op::WriteZeroes { extent, may_unmap: true }), ONE);
        assert_eq!(Cost::of(Op::Write { extent, fua: true }), ONE);
        let mut schedule = Schedule::full(&limits(None, Some((1, 1))), 0);
        schedule.reserve(0, ONE);
        assert!(schedule.reserve(0, ONE) > 1000 * SECOND);
        assert_eq!(schedule.reserve(0, Cost::of(Op::Flush)), 0);
    }

    #[test]
    fn without_limits_nothing_waits_and_the_largest_request_overflows_nothing() {
        let most = Cost { operations: 1, bytes: u64::MAX };
        assert_eq!(Schedule::default().reserve(7, most), 7);
        let mut schedule = Schedule::full(&limits(Some((1, 1)), Some((1, 1))), 7);
        assert_eq!(schedule.reserve(7, most), 7);
        assert_eq!(schedule.reserve(7, most), Ns::MAX);
        assert_eq!(schedule.reserve(7, most), Ns::MAX);
    }

    #[test]
    fn a_limit_that_is_set_anew_gives_no_second_burst() {
        let mut schedule = Schedule::empty(&limits(Some((100, 50)), None), SECOND);
        assert_eq!(schedule.reserve(SECOND, ONE), SECOND + SECOND / 100);
    }

    /// Tokens as they are, counted afresh at each event: what a schedule has to keep to.
    struct Model {
        rate: Rate,
        /// In tokens times ns.
        level: i128,
        at: Ns,
    }

    impl Model {
        const UNIT: i128 = SECOND as i128;

        fn spend(&mut self, at: Ns, tokens: u64) -> Result<(), TestCaseError> {
            let full = i128::from(self.rate.burst) * Self::UNIT;
            let come = i128::from(at - self.at) * i128::from(self.rate.per_second);
            self.level = (self.level + come).min(full);
            self.at = at;
            prop_assert!(self.level >= i128::from(tokens.min(self.rate.burst)) * Self::UNIT, "too early");
            self.level -= i128::from(tokens) * Self::UNIT;
            Ok(())
        }

        /// How long it waits at least, from `at` on, were it alone.
        fn wait(&self, at: Ns, tokens: u64) -> i128 {
            let full = i128::from(self.rate.burst) * Self::UNIT;
            let level =
                self.level + i128::from(at.saturating_sub(self.at)) * i128::from(self.rate.per_second);
            let missing = i128::from(tokens.min(self.rate.burst)) * Self::UNIT - level.min(full);
            missing / i128::from(self.rate.per_second)
        }
    }

    proptest! {
        /// Begun as they are due, requests never take a token that is not there, and none waits longer than it has to.
        #[test]
        fn a_schedule_lets_through_what_two_buckets_of_tokens_would(
            iops in (1_u64..5000, 1_u64..100),
            bps in (1_u64..1_000_000, 1_u64..100_000),
            requests in prop::collection::vec((0..SECOND / 10, 1_u64..50_000), 1..60),
        ) {
            let limits = limits(Some(iops), Some(bps));
            let mut schedule = Schedule::full(&limits, 0);
            let model = |rate: Option<Rate>| {
                let rate = rate.unwrap();
                Model { rate, level: i128::from(rate.burst) * Model::UNIT, at: 0 }
            };
            let mut models = [model(limits.iops), model(limits.bps)];
            let (mut now, mut last) = (0, 0);
            for (rest, bytes) in requests {
                now += rest;
                let due = schedule.reserve(now, Cost { operations: 1, bytes });
                prop_assert!(due >= now && due >= last, "whoever came first goes first");
                let earliest = now.max(last);
                let wait = models[0].wait(earliest, 1).max(models[1].wait(earliest, bytes)).max(0);
                // Each reservation before may have been rounded up by 1 ns.
                prop_assert!(i128::from(due - earliest) <= wait + 70, "too late: {due} from {earliest}, {wait}");
                models[0].spend(due, 1)?;
                models[1].spend(due, bytes)?;
                last = due;
            }
        }
    }
}
