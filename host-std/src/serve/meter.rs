//! Statistics of images: counted by each handle on its own cache lines, added up when asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::mutex::lock;
use blk_core::op::Op;
use serde::{Deserialize, Serialize};

/// Buckets of a histogram: the last one has everything from 2^39 ns (9 minutes) on.
pub const BUCKETS: usize = 40;

/// How long operations took. Bucket n counts those of 2^n ns to less than 2^(n+1) ns, bucket 0 those below 2 ns, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl Histogram {
    /// Operations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The counts, bucket by bucket.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.0
    }

    /// A time in ns that `percent` of the operations did not exceed: the end of a bucket, so at most twice the truth.
    /// `None` if there was no operation.
    #[must_use]
    pub fn percentile_ns(&self, percent: u8) -> Option<u64> {
        let count = self.count();
        let wanted = (u128::from(count) * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0_u128;
        for (n, &bucket) in self.0.iter().enumerate() {
            seen += u128::from(bucket);
            if count != 0 && seen >= wanted {
                return Some((2_u64 << n) - 1);
            }
        }
        None
    }
}

/// What was done of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindStats {
    /// Operations that ended well.
    pub operations: u64,
    /// Bytes that they moved or changed.
    pub bytes: u64,
    /// Operations that failed, tries of held ones included.
    pub errors: u64,
    /// Time from submission to completion of all of them, in ns, a pause in between left out.
    pub total_ns: u64,
    /// The same, by powers of two.
    pub latency: Histogram,
}

/// What was done to an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStats {
    /// Reads.
    pub read: KindStats,
    /// Writes.
    pub write: KindStats,
    /// Flushes, those that stand for FUA or for a guest without a cache included.
    pub flush: KindStats,
    /// Write-zeroes and discards.
    pub range: KindStats,
    /// Held requests that were submitted again.
    pub retries: u64,
}

/// One kind's counters, with one writer.
#[derive(Debug)]
struct Kind {
    operations: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    total_ns: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Kind {
    const fn new() -> Self {
        Self {
            operations: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    fn add_to(&self, sum: &mut KindStats) {
        sum.operations += self.operations.load(Ordering::Relaxed);
        sum.bytes += self.bytes.load(Ordering::Relaxed);
        sum.errors += self.errors.load(Ordering::Relaxed);
        sum.total_ns += self.total_ns.load(Ordering::Relaxed);
        for (sum, bucket) in sum.latency.0.iter_mut().zip(&self.latency) {
            *sum += bucket.load(Ordering::Relaxed);
        }
    }
}

/// Adds to a counter that has one writer: no locked instruction.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// The counters of one handle.
#[derive(Debug)]
pub(super) struct Meter {
    read: Kind,
    write: Kind,
    flush: Kind,
    range: Kind,
    retries: AtomicU64,
}

impl Meter {
    /// An operation that began at `since` has ended.
    #[inline]
    pub(super) fn end(&self, op: &Op, since: Instant, ok: bool) {
        let kind = match op {
            Op::Read { .. } => &self.read,
            Op::Write { .. } => &self.write,
            Op::Flush => &self.flush,
            Op::WriteZeroes { .. } | Op::Discard { .. } => &self.range,
            // No operation of the guest's on its disk.
            Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => return,
        };
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if ok {
            add(&kind.operations, 1);
            add(&kind.bytes, op.extent().and_then(|extent| extent.bytes()).unwrap_or(0));
        } else {
            add(&kind.errors, 1);
        }
        add(&kind.total_ns, ns);
        if let Some(bucket) = kind.latency.get((ns.max(1).ilog2() as usize).min(BUCKETS - 1)) {
            add(bucket, 1);
        }
    }

    pub(super) fn retry(&self) {
        add(&self.retries, 1);
    }

    fn add_to(&self, sum: &mut ImageStats) {
        self.read.add_to(&mut sum.read);
        self.write.add_to(&mut sum.write);
        self.flush.add_to(&mut sum.flush);
        self.range.add_to(&mut sum.range);
        sum.retries += self.retries.load(Ordering::Relaxed);
    }
}

/// The counters of all handles of an image.
#[derive(Debug, Default)]
pub struct Meters {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    open: Vec<Arc<Meter>>,
    /// What handles counted that are gone.
    gone: ImageStats,
}

impl Meters {
    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> ImageStats {
        let all = lock(&self.all);
        let mut sum = all.gone.clone();
        all.open.iter().for_each(|meter| meter.add_to(&mut sum));
        sum
    }

    /// Counters for a new handle.
    pub(super) fn enter(&self) -> Arc<Meter> {
        let meter = Arc::new(Meter {
            read: Kind::new(),
            write: Kind::new(),
            flush: Kind::new(),
            range: Kind::new(),
            retries: AtomicU64::new(0),
        });
        lock(&self.all).open.push(Arc::clone(&meter));
        meter
    }

    /// The handle is gone.
    pub(super) fn leave(&self, meter: &Arc<Meter>) {
        let mut all = lock(&self.all);
        all.open.retain(|open| !Arc::ptr_eq(open, meter));
        meter.add_to(&mut all.gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk_core::units::Extent;

    #[test]
    fn handles_that_are_gone_still_count() {
        let meters = Meters::default();
        let (first, second) = (meters.enter(), meters.enter());
        let read = Op::Read { extent: Extent::new(0, 8) };
        first.end(&read, Instant::now(), true);
        second.end(&read, Instant::now(), false);
        meters.leave(&first);
        let stats = meters.stats();
        assert_eq!((stats.read.operations, stats.read.bytes, stats.read.errors), (1, 4096, 1));
        assert_eq!(stats.read.latency.count(), 2);
        assert_eq!(stats.write, KindStats::default());
    }

    #[test]
    fn percentiles_are_the_ends_of_buckets() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile_ns(50), None);
        histogram.0[10] = 98;
        histogram.0[20] = 2;
        assert_eq!(histogram.percentile_ns(0), Some(2047));
        assert_eq!(histogram.percentile_ns(98), Some(2047));
        assert_eq!(histogram.percentile_ns(99), Some((1 << 21) - 1));
        assert_eq!(histogram.percentile_ns(100), Some((1 << 21) - 1));
    }
}
