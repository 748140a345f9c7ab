//! Requests of the guest, each to its end, over as many servers as it takes; what the guest may believe afterwards.

use std::collections::BTreeMap;

use super::{Life, Over, TRIES};
use crate::guest::{BLOCK, Id, Outcome, Request, Trouble, contents};
use crate::history::{Promise, PromiseKind};
use crate::results::Kind;

impl Life<'_> {
    /// Submits requests, and waits until each has ended; with another server if need be.
    pub(super) fn perform(&mut self, requests: &[Request]) -> Result<(), Over> {
        let mut to_submit: Vec<Request> = requests.to_vec();
        let mut in_flight: BTreeMap<Id, (Request, u64)> = BTreeMap::new();
        let mut tries = 0;
        while !to_submit.is_empty() || !in_flight.is_empty() {
            let step = self.step(&mut to_submit, &mut in_flight);
            let Err(trouble) = step else { continue };
            tries += 1;
            if tries > TRIES {
                let requests = in_flight.len() + to_submit.len();
                return Err(self.find(Kind::Gone, format!("{requests} requests never end: {trouble:?}")));
            }
            if let Trouble::Late(what) = &trouble {
                if self.resume_if_paused() {
                    continue;
                }
                let requests: Vec<_> = in_flight.values().map(|(request, _)| request).collect();
                return Err(self.find(Kind::Waiting, format!("{requests:?}: {what}")));
            }
            self.lost(trouble)?;
            let cache_off = self.cache_off;
            if !self.connect()? {
                let lost = std::mem::take(&mut in_flight).into_values().map(|(request, _)| request);
                to_submit.splice(0..0, lost);
                if cache_off {
                    to_submit.insert(0, Request::CacheOff);
                }
            }
        }
        match self.guest.nothing_more() {
            Err(Trouble::Wrong(what)) => Err(self.find(Kind::Twice, what)),
            // What is lost here is found out by the next request.
            _ => Ok(()),
        }
    }

    /// Submits all, or waits for one.
    fn step(
        &mut self,
        to_submit: &mut Vec<Request>,
        in_flight: &mut BTreeMap<Id, (Request, u64)>,
    ) -> Result<(), Trouble> {
        while let Some(request) = to_submit.first().cloned() {
            // The setting holds for what is submitted after its answer.
            let setting = |request: &Request| matches!(request, Request::CacheOff);
            if !in_flight.is_empty() && (setting(&request) || in_flight.values().any(|(r, _)| setting(r))) {
                break;
            }
            self.submitted(&request);
            let now = self.history.now();
            let id = self.guest.submit(&request)?;
            in_flight.insert(id, (request, now));
            to_submit.remove(0);
        }
        let (id, outcome) = self.guest.wait()?;
        if self.guest.take_reset() && std::mem::take(&mut self.cache_off) {
            to_submit.insert(0, Request::CacheOff);
        }
        let Some((request, submitted)) = in_flight.remove(&id) else {
            return Err(Trouble::Wrong(format!("request {id} ended, and was not in flight")));
        };
        match outcome {
            Outcome::Done(data) => self.done(&request, submitted, &data),
            Outcome::Again => to_submit.insert(0, request),
            Outcome::Failed(how) => self.failed(&request, &how),
        }
        Ok(())
    }

    /// A write may be in the image from now on.
    fn submitted(&mut self, request: &Request) {
        let (block, version) = match *request {
            Request::Write { block, version, .. } => (block, version),
            Request::Zero { block } => (block, 0),
            Request::Exchange { block, to, .. } => (block, to),
            _ => return,
        };
        let versions = self.blocks.entry(block).or_insert_with(|| vec![0]);
        if !versions.contains(&version) {
            versions.push(version);
        }
    }

    fn done(&mut self, request: &Request, submitted: u64, data: &[u8]) {
        let acknowledged = self.history.now();
        let what = format!("{request:?}");
        let write = |block: u64, stable: bool| {
            let range = block * BLOCK as u64..(block + 1) * BLOCK as u64;
            PromiseKind::Write { range, stable }
        };
        let kind = match *request {
            Request::Write { block, version, fua } => {
                self.blocks.insert(block, vec![version]);
                write(block, fua || self.cache_off)
            }
            Request::Exchange { block, to, .. } => {
                self.blocks.insert(block, vec![to]);
                write(block, self.cache_off)
            }
            Request::Zero { block } => {
                self.blocks.insert(block, vec![0]);
                write(block, self.cache_off)
            }
            Request::Flush => PromiseKind::Flush,
            Request::CacheOff => {
                self.cache_off = true;
                PromiseKind::Flush
            }
            Request::Read { block } => return self.check(block, data, "reads as"),
        };
        self.history.promise(Promise { what, submitted, acknowledged, kind });
    }

    /// An error is no lie; but without one of the host nothing may fail.
    fn failed(&mut self, request: &Request, how: &str) {
        let provoked = self.case.plan.as_ref().is_some_and(|plan| !plan.action.is_kill());
        if !provoked {
            self.find(Kind::Gone, format!("{request:?} failed, and the host failed nothing: {how}"));
        }
    }

    pub(super) fn check(&mut self, block: u64, data: &[u8], reads: &str) {
        let versions = self.blocks.get(&block).cloned().unwrap_or_else(|| vec![0]);
        let is = |version: u32| {
            if version == 0 { data.iter().all(|&byte| byte == 0) } else { data == contents(block, version) }
        };
        if versions.iter().any(|&version| is(version)) {
            return;
        }
        let found = (0..4).find(|&version| is(version));
        let found = found.map_or("nothing that was written there".into(), |found| format!("version {found}"));
        self.find(Kind::Lost, format!("block {block} {reads} {found}; it may hold {versions:?}"));
    }
}
