//! Limits of rate as an operator writes them, and as one is told of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::{ConfigError, ImageConfig, Size};
use crate::throttle::{Delays, Limiter, Limits, Rate};

/// Limits to be set. Of what is left out, a rate stays as it is, and a burst goes by its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitChange {
    /// Operations a second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Operations that may be done at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<u64>,
    /// Bytes a second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<Size>,
    /// Bytes that may be moved at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_burst: Option<Size>,
}

impl LimitChange {
    /// Takes one limit as it is written: `iops=500`, `bps=100M`, `iops-burst=2000`, `bps-burst=1G`.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = |remedy: &str| format!("{text}: is no limit; {remedy}");
        let number = || value.parse().map_err(|_| wrong("give a whole number, such as iops=500"));
        let size = || value.parse().map_err(|remedy: String| wrong(&remedy));
        match key {
            "iops" => self.iops = Some(number()?),
            "iops-burst" => self.iops_burst = Some(number()?),
            "bps" => self.bps = Some(size()?),
            "bps-burst" => self.bps_burst = Some(size()?),
            _ => return Err(wrong("give iops=N, bps=SIZE, iops-burst=N or bps-burst=SIZE")),
        }
        Ok(())
    }

    /// The limits after this change of `limits`.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn apply(&self, limits: Limits) -> Result<Limits, String> {
        Ok(Limits {
            iops: change("iops", limits.iops, self.iops, self.iops_burst)?,
            bps: change("bps", limits.bps, self.bps.map(|Size(n)| n), self.bps_burst.map(|Size(n)| n))?,
        })
    }
}

fn change(
    name: &str,
    rate: Option<Rate>,
    per_second: Option<u64>,
    burst: Option<u64>,
) -> Result<Option<Rate>, String> {
    match (per_second.or(rate.map(Rate::per_second)), burst) {
        (_, Some(0)) => {
            Err(format!("{name}-burst=0 would let nothing through; leave it out, or give 1 or more"))
        }
        (None | Some(0), Some(_)) => Err(format!("{name}-burst without {name}; give {name}, too")),
        (_, None) if per_second.is_none() => Ok(rate),
        (per_second, burst) => Ok(Rate::new(per_second.unwrap_or(0), burst)),
    }
}

impl ImageConfig {
    /// The limits of an image; `None` if none of their options is given. Then none can be set while it is served, and none costs
    /// anything.
    pub(super) fn limits(&self) -> Result<Option<Limits>, ConfigError> {
        let Self { iops, iops_burst, bps, bps_burst, .. } = *self;
        let given = LimitChange { iops, iops_burst, bps, bps_burst };
        if given == LimitChange::default() {
            return Ok(None);
        }
        let place = || format!("image {}", self.path.display());
        let limits = given.apply(Limits::default());
        let wrong = |error: String| {
            let (what, remedy) = error.split_once("; ").unwrap_or((&error, "see --help"));
            ConfigError::new(place(), what, remedy)
        };
        limits.map(Some).map_err(wrong)
    }
}

/// What an operator is told of the limits of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleStats {
    /// Operations a second; `None` for no limit.
    pub iops: Option<u64>,
    /// Operations that may be done at once.
    pub iops_burst: Option<u64>,
    /// Bytes a second.
    pub bps: Option<u64>,
    /// Bytes that may be moved at once.
    pub bps_burst: Option<u64>,
    /// Requests that wait now.
    pub held: u64,
    /// Requests that waited, and wait no more.
    pub delayed: u64,
    /// How long those waited, in ns.
    pub delayed_ns: u64,
}

impl ThrottleStats {
    pub(super) fn of(limiter: &Arc<Limiter>) -> Self {
        let Limits { iops, bps } = limiter.limits();
        let Delays { held, delayed, delayed_ns } = limiter.delays();
        Self {
            iops: iops.map(Rate::per_second),
            iops_burst: iops.map(Rate::burst),
            bps: bps.map(Rate::per_second),
            bps_burst: bps.map(Rate::burst),
            held,
            delayed,
            delayed_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(limits: &[&str]) -> Result<LimitChange, String> {
        let mut change = LimitChange::default();
        limits.iter().try_for_each(|text| change.set(text)).map(|()| change)
    }

    #[test]
    fn what_a_change_leaves_out_stays_and_0_lifts_a_limit() {
        let rate = |per_second, burst| Rate::new(per_second, Some(burst));
        let set = |limits, texts: &[&str]| change(texts).unwrap().apply(limits).unwrap();
        let first = set(Limits::default(), &["iops=500", "bps=1M", "bps-burst=2M"]);
        assert_eq!(first, Limits { iops: rate(500, 50), bps: rate(1 << 20, 2 << 20) });
        assert_eq!(set(first, &[]), first);
        assert_eq!(set(first, &["iops=7"]), Limits { iops: rate(7, 1), ..first });
        assert_eq!(set(first, &["iops-burst=7"]), Limits { iops: rate(500, 7), ..first });
        assert_eq!(set(first, &["bps=0"]), Limits { bps: None, ..first });
        assert_eq!(set(first, &["bps=2M"]), Limits { bps: rate(2 << 20, (2 << 20) / 10), ..first });
    }

    #[test]
    fn a_limit_that_cannot_be_is_named_with_its_remedy() {
        for (texts, named, remedy) in [
            (&["iops=fast"][..], "iops=fast", "whole number"),
            (&["iops=-1"], "iops=-1", "whole number"),
            (&["bps=1X"], "bps=1X", "K, M, G or T"),
            (&["ops=1"], "ops=1", "iops=N"),
            (&["iops"], "iops", "whole number"),
            (&["iops-burst=5"], "iops-burst without iops", "give iops"),
            (&["bps=0", "bps-burst=5"], "bps-burst without bps", "give bps"),
            (&["iops=5", "iops-burst=0"], "iops-burst=0", "leave it out"),
        ] {
            let error = change(texts).and_then(|change| change.apply(Limits::default())).unwrap_err();
            assert!(error.contains(named) && error.contains(remedy), "{error}");
        }
    }
}
