//! A limit of rate for each cause: a place in the code that logs, and the device of which it speaks.
//!
//! A client that provokes the same line over and over must not fill a disk with it, nor keep others from being heard. Ten lines
//! pass at once, and ten a second in the long run; how many were left out is said every second.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::queue::QUEUE;
use crate::mutex::lock;

/// Lines that pass at once.
const BURST: u32 = 10;
/// After how long one more may pass.
const INTERVAL: Duration = Duration::from_millis(100);
/// Characters of a line that say which lines are left out.
const SAMPLE_CHARS: usize = 120;
/// The field, of a span or an event, that names the device; and the span whose `name` does.
const DEVICE: &str = "device";

/// Counts lines by their cause, and holds back what is too much.
#[derive(Default)]
pub(super) struct RateLimit(Mutex<HashMap<Cause, Bucket>>);

type Cause = (Identifier, Option<Arc<str>>);

/// The device that a span is about.
struct Device(Arc<str>);

impl RateLimit {
    /// Says what has been left out since the last time.
    pub(super) fn tell(&self) {
        let mut left_out = Vec::new();
        for ((_, device), bucket) in lock(&self.0).iter_mut() {
            let lines = std::mem::take(&mut bucket.left_out);
            if lines != 0 {
                left_out.push((device.clone(), lines, std::mem::take(&mut bucket.sample)));
            }
        }
        for (device, lines, like) in left_out {
            let device = device.as_deref();
            tracing::warn!(device, like, "{lines} more lines like this were left out");
        }
    }

    /// Whether a line passes. `sample` is asked for where it is the first that does not.
    fn admit(&self, cause: Cause, now: Instant, sample: impl FnOnce() -> String) -> bool {
        let mut buckets = lock(&self.0);
        let bucket = buckets.entry(cause).or_insert_with(|| Bucket::full(now));
        if bucket.take(now) {
            return true;
        }
        if bucket.left_out == 0 {
            bucket.sample = sample();
        }
        bucket.left_out = bucket.left_out.saturating_add(1);
        false
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for &'static RateLimit {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let name = if attributes.metadata().name() == DEVICE { "name" } else { DEVICE };
        let mut text = FieldText::new(name);
        attributes.record(&mut text);
        if let (Some(device), Some(span)) = (text.value, context.span(id)) {
            span.extensions_mut().insert(Device(device.into()));
        }
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        // What the limit itself says comes once a second at most.
        if event.metadata().target() == module_path!() {
            return true;
        }
        let of_span = context.event_scope(event).and_then(|mut spans| {
            spans.find_map(|span| span.extensions().get::<Device>().map(|device| Arc::clone(&device.0)))
        });
        let of_event = || {
            let mut text = FieldText::new(DEVICE);
            event.record(&mut text);
            text.value.map(Arc::from)
        };
        let cause = (event.metadata().callsite(), of_span.or_else(of_event));
        let sample = || {
            let mut text = FieldText::new("message");
            event.record(&mut text);
            text.value.unwrap_or_default().chars().take(SAMPLE_CHARS).collect()
        };
        let admitted = self.admit(cause, Instant::now(), sample);
        if !admitted {
            QUEUE.tell_later();
        }
        admitted
    }
}

/// Lines that may pass.
struct Bucket {
    lines: u32,
    since: Instant,
    left_out: u64,
    sample: String,
}

impl Bucket {
    const fn full(now: Instant) -> Self {
        Self { lines: BURST, since: now, left_out: 0, sample: String::new() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let intervals = now.saturating_duration_since(self.since).as_millis() / INTERVAL.as_millis();
        if let Some(more @ 1..) = u32::try_from(intervals).ok().map(|more| more.min(BURST)) {
            self.lines = self.lines.saturating_add(more).min(BURST);
            self.since = if self.lines == BURST { now } else { self.since + INTERVAL * more };
        }
        let left = self.lines.checked_sub(1);
        self.lines = left.unwrap_or(0);
        left.is_some()
    }
}

/// The text of one field.
struct FieldText {
    name: &'static str,
    value: Option<String>,
}

impl FieldText {
    const fn new(name: &'static str) -> Self {
        Self { name, value: None }
    }
}

impl Visit for FieldText {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.name {
            self.value = Some(value.into());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.name {
            self.value = Some(format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_pass_at_once_and_ten_a_second_after_that() {
        let began = Instant::now();
        let mut bucket = Bucket::full(began);
        let mut passed =
            |at_ms| (0..100).filter(|_| bucket.take(began + Duration::from_millis(at_ms))).count();
        assert_eq!(passed(0), 10);
        assert_eq!(passed(99), 0);
        assert_eq!(passed(250), 2);
        assert_eq!(passed(300), 1);
        assert_eq!(passed(1300), 10);
        assert_eq!(passed(60_000), 10);
        assert_eq!(passed(60_100), 1);
    }
}
