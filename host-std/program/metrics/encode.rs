//! What servers count, as OpenMetrics text 1.0.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use host_std::backend::BudgetUse;
use host_std::serve::control::Report;
use host_std::serve::meter::{BUCKETS, KindStats};
use host_std::serve::throttle::ThrottleStats;
use host_std::serve::{DeviceStats, ImageReport, State};
use host_std::server::QueueStats;

/// Media type of the answer of [`text()`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the latency histograms: 2^13 ns (8 µs) to 2^35 ns (34 s), each twice the last. What is faster or slower is in the
/// first or last bucket.
const BOUNDS: std::ops::RangeInclusive<usize> = 13..=35;

/// A server that was asked.
#[derive(Debug)]
pub(crate) struct Scraped {
    /// Its control socket.
    pub(crate) control: String,
    /// What it said; `None` if it did not answer.
    pub(crate) report: Option<Report>,
}

/// The text, down to its `# EOF`.
pub(crate) fn text(servers: Vec<Scraped>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("blk_host");
    registry.register_collector(Box::new(Servers(servers)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Servers(Vec<Scraped>);

impl Collector for Servers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.servers(&mut out)?;
        self.devices(&mut out)?;
        self.queues(&mut out)?;
        self.images(&mut out)?;
        self.budgets(&mut out)?;
        self.limits(&mut out)
    }
}

impl Servers {
    fn servers(&self, out: &mut Families<'_>) -> fmt::Result {
        let up = self
            .0
            .iter()
            .map(|server| (vec![("control", server.control.clone())], u64::from(server.report.is_some())));
        out.gauge("up", "Whether the server answers on its control socket", None, up)?;
        let of =
            |value: fn(&Report) -> u64| self.reports().map(move |(labels, report)| (labels, value(report)));
        out.gauge(
            "uptime",
            "Time since the server began",
            Some(Unit::Seconds),
            of(|report| report.uptime_seconds),
        )?;
        out.counter(
            "log_lines_lost",
            "Lines of the log that standard error did not take",
            None,
            of(|report| report.log_lines_lost),
        )
    }

    fn devices(&self, out: &mut Families<'_>) -> fmt::Result {
        let of = |value: fn(&DeviceStats) -> u64| {
            self.each_device().map(move |(labels, device)| (labels, value(device)))
        };
        out.gauge(
            "paused",
            "Whether the device takes no requests",
            None,
            of(|device| u64::from(device.state != State::Running)),
        )?;
        out.gauge(
            "held_requests",
            "Requests that the error policy holds",
            None,
            of(|device| device.held.into()),
        )?;
        out.gauge(
            "client_connected",
            "Whether a client is connected",
            None,
            of(|device| device.server.connected.into()),
        )?;
        out.counter("clients", "Clients that have connected", None, of(|device| device.server.clients))?;
        out.counter(
            "resubmitted_requests",
            "Requests of an earlier server that were worked on again",
            None,
            of(|device| device.server.resubmitted),
        )
    }

    fn queues(&self, out: &mut Families<'_>) -> fmt::Result {
        type Value = fn(&QueueStats) -> u64;
        let of = |value: Value| self.each_queue().map(move |(labels, queue)| (labels, value(queue)));
        let by = |kinds: &'static [(&'static str, Value)]| {
            self.each_queue().flat_map(move |(labels, queue)| {
                kinds.iter().map(move |(kind, value)| (with(&labels, "operation", kind), value(queue)))
            })
        };
        out.counter(
            "queue_requests",
            "Requests that the guest made",
            None,
            by(&[
                ("read", |queue| queue.reads),
                ("write", |queue| queue.writes),
                ("flush", |queue| queue.flushes),
                ("range", |queue| queue.ranges),
                ("other", |queue| queue.others),
            ]),
        )?;
        out.counter(
            "queue",
            "Bytes that the guest asked for or brought",
            Some(Unit::Bytes),
            by(&[("read", |queue| queue.read_bytes), ("write", |queue| queue.written_bytes)]),
        )?;
        out.counter("queue_errors", "Requests that ended in an error", None, of(|queue| queue.errors))?;
        out.gauge("queue_in_flight", "Requests in flight", None, of(|queue| queue.in_flight.into()))?;
        out.counter("queue_interrupts", "Interrupts for the guest", None, of(|queue| queue.notifications))?;
        out.counter("queue_kicks", "Wake-ups by the guest", None, of(|queue| queue.kicks))?;
        out.counter("queue_polls", "Looks at the ring", None, of(|queue| queue.polls))
    }

    fn images(&self, out: &mut Families<'_>) -> fmt::Result {
        let of = |value: fn(&ImageReport) -> u64| {
            self.each_image().map(move |(labels, image)| (labels, value(image)))
        };
        out.gauge("image_size", "Size of the image", Some(Unit::Bytes), of(|image| image.bytes))?;
        out.gauge(
            "image_latched",
            "Whether a durable operation failed, so that flushes and writes fail until the image was checked",
            None,
            of(|image| image.latched.is_some().into()),
        )?;
        let kinds =
            |value: fn(&KindStats) -> u64| self.each_kind().map(move |(labels, kind)| (labels, value(kind)));
        out.counter("image_operations", "Operations that ended well", None, kinds(|kind| kind.operations))?;
        out.counter("image_errors", "Operations that failed", None, kinds(|kind| kind.errors))?;
        out.counter(
            "image",
            "Bytes that operations moved or changed",
            Some(Unit::Bytes),
            kinds(|kind| kind.bytes),
        )?;
        out.latencies("image_operation_duration", "Time from submission to completion", self.each_kind())?;
        out.counter(
            "image_retries",
            "Held requests that were tried again",
            None,
            of(|image| image.operations.retries),
        )?;
        let calls = self.each_image().flat_map(|(labels, image)| {
            let host = &image.host;
            [
                ("fdatasync", host.fdatasync_calls),
                ("O_DSYNC", host.dsync_writes),
                ("RWF_DSYNC", host.fua_writes),
            ]
            .map(|(call, count)| (with(&labels, "call", call), count))
        });
        out.counter("image_host_syncs", "System calls that make data stable", None, calls)
    }

    fn budgets(&self, out: &mut Families<'_>) -> fmt::Result {
        let of = |value: fn(&BudgetUse) -> u64| {
            self.each_image().flat_map(move |(labels, image)| {
                let budgets = &image.budgets;
                let all = [
                    ("inflight", Some(budgets.bytes_in_flight)),
                    ("private-memory", Some(budgets.private_memory)),
                    ("recording", image.recording_memory),
                ];
                all.into_iter()
                    .filter_map(move |(name, budget)| Some((with(&labels, "budget", name), value(&budget?))))
            })
        };
        let bytes = Some(Unit::Bytes);
        out.gauge("budget_used", "Bytes of the budget in use", bytes.clone(), of(|budget| budget.used))?;
        out.gauge(
            "budget_peak",
            "Most bytes of the budget that were in use",
            bytes.clone(),
            of(|budget| budget.peak),
        )?;
        out.gauge("budget_limit", "Bytes that may be in use", bytes, of(|budget| budget.limit))?;
        let image = |value: fn(&ImageReport) -> u64| {
            self.each_image().map(move |(labels, image)| (labels, value(image)))
        };
        out.gauge(
            "budget_waiting",
            "Operations that wait for a budget",
            None,
            image(|image| image.budgets.waiting),
        )?;
        out.counter(
            "budget_delayed",
            "Operations that waited for a budget",
            None,
            image(|image| image.budgets.delayed),
        )
    }

    fn limits(&self, out: &mut Families<'_>) -> fmt::Result {
        let throttles =
            || self.each_image().filter_map(|(labels, image)| Some((labels, image.throttle.as_ref()?)));
        let of = |value: fn(&ThrottleStats) -> u64| {
            throttles().map(move |(labels, throttle)| (labels, value(throttle)))
        };
        out.gauge(
            "limit_waiting",
            "Operations that wait for a limit of rate",
            None,
            of(|throttle| throttle.held),
        )?;
        out.counter(
            "limit_delayed",
            "Operations that waited for a limit",
            None,
            of(|throttle| throttle.delayed),
        )?;
        let waited = throttles().map(|(labels, throttle)| (labels, seconds(throttle.delayed_ns)));
        out.counter("limit_delay", "Time that operations waited for a limit", Some(Unit::Seconds), waited)
    }

    fn reports(&self) -> impl Iterator<Item = (Labels, &Report)> {
        self.0
            .iter()
            .filter_map(|server| Some((vec![("control", server.control.clone())], server.report.as_ref()?)))
    }

    fn each_device(&self) -> impl Iterator<Item = (Labels, &DeviceStats)> {
        self.reports().flat_map(|(labels, report)| {
            report.devices.iter().map(move |device| (with(&labels, "device", &device.name), device))
        })
    }

    fn each_queue(&self) -> impl Iterator<Item = (Labels, &QueueStats)> {
        self.each_device().flat_map(|(labels, device)| {
            let queues = device.server.queues.iter().enumerate();
            queues.map(move |(index, queue)| (with(&labels, "queue", &index.to_string()), queue))
        })
    }

    fn each_image(&self) -> impl Iterator<Item = (Labels, &ImageReport)> {
        self.each_device().flat_map(|(labels, device)| {
            let images = device.images.iter();
            images.map(move |image| (with(&labels, "image", &image.path.display().to_string()), image))
        })
    }

    fn each_kind(&self) -> impl Iterator<Item = (Labels, &KindStats)> {
        self.each_image().flat_map(|(labels, image)| {
            let of = &image.operations;
            [("read", &of.read), ("write", &of.write), ("flush", &of.flush), ("range", &of.range)]
                .map(|(name, kind)| (with(&labels, "operation", name), kind))
        })
    }
}

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    labels.iter().cloned().chain([(name, value.to_owned())]).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a sum in ns beyond 2^53 is months")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Writes families of metrics. One without a sample is left out.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let of = (name, help, unit, MetricType::Gauge);
        self.family(of, samples, |mut sample, value| sample.encode_gauge(&value))
    }

    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let of = (name, help, unit, MetricType::Counter);
        self.family(of, samples, |mut sample, value| {
            sample.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn latencies<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (Labels, &'a KindStats)>,
    ) -> fmt::Result {
        let of = (name, help, Some(Unit::Seconds), MetricType::Histogram);
        self.family(of, samples, |mut sample, kind| {
            let (sum, count) = (seconds(kind.total_ns), kind.latency.count());
            sample.encode_histogram::<NoLabelSet>(sum, count, &buckets(kind), None)
        })
    }

    fn family<V>(
        &mut self,
        (name, help, unit, kind): (&str, &str, Option<Unit>, MetricType),
        samples: impl Iterator<Item = (Labels, V)>,
        encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        samples.try_for_each(|(labels, value)| encode(family.encode_family(&labels)?, value))
    }
}

/// Upper bounds in seconds, and how many operations took no longer, but longer than the bound before.
fn buckets(kind: &KindStats) -> Vec<(f64, u64)> {
    let of_meter = kind.latency.buckets();
    // Bucket n of the meter ends at 2^(n+1) ns.
    let up_to = |bound: usize| of_meter.iter().take(bound).sum::<u64>();
    let mut before = 0;
    let mut buckets = Vec::new();
    let finite = BOUNDS.map(|bound| (seconds(1 << bound), up_to(bound)));
    for (bound, sum) in finite.chain([(f64::INFINITY, up_to(BUCKETS))]) {
        buckets.push((bound, sum - before));
        before = sum;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_gone_is_down_and_the_text_has_its_end() {
        let text = text(vec![Scraped { control: "a\"b".into(), report: None }]).unwrap();
        assert!(text.contains("# TYPE blk_host_up gauge\nblk_host_up{control=\"a\\\"b\"} 0\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        assert!(!text.contains("blk_host_uptime"), "{text}");
    }

    #[test]
    fn no_operation_is_missing_in_the_buckets() {
        let mut counts = vec![0_u64; BUCKETS];
        for (bucket, count) in [(0, 1), (12, 2), (13, 4), (34, 8), (35, 16), (39, 32)] {
            counts[bucket] = count;
        }
        let latency = serde_json::from_value(serde_json::json!(counts)).unwrap();
        let buckets = buckets(&KindStats { latency, ..KindStats::default() });
        let filled: Vec<_> = buckets.into_iter().filter(|(_, count)| *count != 0).collect();
        let bound = |power: i32| 2_f64.powi(power) / 1e9;
        assert_eq!(filled, [(bound(13), 3), (bound(14), 4), (bound(35), 8), (f64::INFINITY, 48)]);
    }
}
