//! The life of a server, from its start to SIGTERM, with a guest that goes on with its script whatever happens; and what must hold
//! afterwards.
//!
//! ```text
//! start -> guest 1: writes, flush, overwrite, FUA, zeroes, resize by the operator, cache off, writes -> leaves
//!       -> guest 2: reads all back, writes, flush, a last write -> SIGTERM, exit status -> the image is read
//! ```

mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::calls::{Action, Plan};
use crate::guest::{self, BLOCK, Guest, Request, Trouble};
use crate::history::History;
use crate::results::{Finding, Kind};
use crate::server::{GROWN_BYTES, IMAGE_BYTES, Place, Server};
use crate::tracer::{Exit, Made};
use crate::{Case, Front};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(4);
/// How a program ends whose main thread has panicked, also if it cannot say so.
const PANICKED: Exit = Exit::Code(101);
/// How often a guest or an operator tries again.
const TRIES: u32 = 6;

/// What a life came to.
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    /// It came to the call of its plan, and whether that was the library's.
    pub(crate) reached: bool,
    pub(crate) library: bool,
    /// The calls of the first process.
    pub(crate) made: Vec<Made>,
}

/// Lives a life.
///
/// # Errors
/// That it cannot be begun at all.
pub(crate) fn live(case: &Case) -> Result<Report, String> {
    let place = Place::new(case.front, case.cache, case.mutant.clone())?;
    let mut life = Life {
        case,
        guest: guest::of(case.front, place.socket(), LIMIT),
        place,
        history: Arc::new(History::default()),
        blocks: BTreeMap::new(),
        server: None,
        generation: 0,
        served: false,
        cache_off: false,
        findings: Vec::new(),
        report: None,
        clean_stop: None,
    };
    // What cuts it short is among the findings.
    let _ = life.run();
    life.judge();
    let (reached, library, made) = match life.report.take() {
        Some(report) => report,
        None => life.first_process(),
    };
    Ok(Report { findings: life.findings, reached, library, made })
}

/// The life cannot go on: a finding says why.
struct Over;

struct Life<'a> {
    case: &'a Case,
    place: Place,
    history: Arc<History>,
    /// What each block may hold: versions of it, 0 for zeroes. More than one where a write was not acknowledged.
    blocks: BTreeMap<u64, Vec<u32>>,
    server: Option<Server>,
    generation: u32,
    /// This process has served a guest.
    served: bool,
    guest: Box<dyn Guest>,
    /// The guest was told that writes are stable once they are done.
    cache_off: bool,
    findings: Vec<Finding>,
    /// Of the first process: came to its call, the library's call, all calls.
    report: Option<(bool, bool, Vec<Made>)>,
    clean_stop: Option<u64>,
}

impl Life<'_> {
    fn run(&mut self) -> Result<(), Over> {
        self.connect()?;
        self.first_guest()?;
        self.leave()?;
        self.connect()?;
        self.second_guest()?;
        self.stop()
    }

    fn first_guest(&mut self) -> Result<(), Over> {
        let write = |block, version| Request::Write { block, version, fua: false };
        self.perform(&[write(0, 1), write(1, 1), write(2, 1), write(3, 1)])?;
        self.perform(&[Request::Flush])?;
        // The read overtakes the write: what is done is not the first of what is in flight.
        self.perform(&[write(0, 2), Request::Read { block: 1 }])?;
        if self.case.front != Front::VirtioBlk {
            // virtio-blk has no FUA.
            self.perform(&[Request::Write { block: 6, version: 1, fua: true }])?;
        }
        if self.case.front != Front::Ahci {
            self.perform(&[Request::Zero { block: 3 }])?;
        }
        if self.case.front == Front::VirtioScsi {
            self.perform(&[write(7, 1)])?;
            self.perform(&[Request::Exchange { block: 7, from: 1, to: 2 }])?;
        }
        let grown = self.grow()?;
        if grown {
            self.perform(&[write(GROWN_BYTES / BLOCK as u64 - 1, 1)])?;
        }
        self.perform(&[Request::CacheOff])?;
        self.perform(&[write(1, 2), write(4, 1)])?;
        self.perform(&[Request::Read { block: 0 }])
    }

    fn second_guest(&mut self) -> Result<(), Over> {
        self.read_back()?;
        let write = |block, version| Request::Write { block, version, fua: false };
        self.perform(&[write(2, 2)])?;
        self.perform(&[Request::Flush])?;
        self.ask_stats()?;
        // Only the stop makes it stable.
        self.perform(&[write(5, 1)])
    }

    fn read_back(&mut self) -> Result<(), Over> {
        let blocks: Vec<_> = self.blocks.keys().map(|&block| Request::Read { block }).collect();
        blocks.chunks(4).try_for_each(|blocks| self.perform(blocks))
    }

    fn find(&mut self, kind: Kind, text: impl Into<String>) -> Over {
        let mut text = text.into();
        if let Some(server) = &self.server {
            let log = server.log();
            if let Some(line) = log.lines().rfind(|line| !line.is_empty()) {
                text = format!("{text}; the server's last words: {}", without_escapes(line));
            }
        }
        self.findings.push(Finding { kind, text });
        Over
    }

    /// Whether the plan is done to this process: then nothing else may happen to it.
    fn is_kill(&self) -> bool {
        self.case.plan.as_ref().is_some_and(|plan| plan.action.is_kill())
    }

    /// Whether the server has told its operator anything, if it could.
    fn is_silent(&self, server: &Server) -> bool {
        let mute = self.case.plan.as_ref().is_some_and(|plan| matches!(plan.action, Action::FailOn(_)));
        !mute && server.log().trim().is_empty()
    }

    fn reached(&self) -> bool {
        self.generation == 1 && self.server.as_ref().is_some_and(|server| server.seen(|seen| seen.reached))
    }

    fn first_process(&self) -> (bool, bool, Vec<Made>) {
        let seen = self
            .server
            .as_ref()
            .map(|server| server.seen(|seen| (seen.reached, seen.reached_library, seen.made.clone())));
        seen.unwrap_or_default()
    }

    /// A server runs, and listens.
    fn ensure_server(&mut self) -> Result<(), Over> {
        for _ in 0..TRIES {
            if let Some(server) = &self.server {
                let listens = server.wait_listening(LIMIT);
                let exit = server.wait_exit(Duration::ZERO);
                match (listens, exit) {
                    (true, None) => return Ok(()),
                    (_, Some(exit)) => self.examine_exit(exit)?,
                    (false, None) => return Err(self.find(Kind::Waiting, "the server does not come up")),
                }
            }
            if self.generation == 1 {
                self.report = Some(self.first_process());
            }
            let plan = self.case.plan.clone().filter(|_| self.generation == 0);
            self.generation += 1;
            self.served = false;
            match self.place.start(self.generation, plan, &self.history) {
                Ok(server) => self.server = Some(server),
                Err(error) => {
                    self.server = None;
                    return Err(self.find(Kind::Harness, error));
                }
            }
        }
        Err(self.find(Kind::Gone, "the server ends whenever it is started"))
    }

    /// The server has ended, though nobody asked it to: is that as it should be?
    fn examine_exit(&mut self, exit: Exit) -> Result<(), Over> {
        let Some(server) = &self.server else { return Ok(()) };
        let (reached, library) = server.seen(|seen| (seen.reached, seen.reached_library));
        let expected = match exit {
            Exit::Signal(Signal::SIGKILL) => reached && self.is_kill(),
            // A start that is refused, with a reason.
            Exit::Code(code) => code != 0 && reached && !self.served && !self.is_silent(server),
            Exit::Signal(_) => false,
        };
        let panicked = exit == PANICKED || server.log().contains("panicked at");
        if (expected && !panicked) || (reached && library) {
            return Ok(());
        }
        let what = format!("the server ended by itself: {exit:?}");
        Err(self.find(Kind::Gone, what))
    }

    /// A guest is connected: a new one, or the one that lost its server.
    fn connect(&mut self) -> Result<bool, Over> {
        let mut last = String::new();
        for _ in 0..TRIES {
            self.ensure_server()?;
            match self.guest.connect() {
                Ok(kept) => {
                    self.served = true;
                    if !kept {
                        self.cache_off = false;
                    }
                    return Ok(kept);
                }
                Err(trouble) => last = self.lost(trouble)?,
            }
        }
        Err(self.find(Kind::Gone, format!("no guest is served: {last}")))
    }

    /// The connection was lost: waits for the end of the server, where that is why.
    fn lost(&mut self, trouble: Trouble) -> Result<String, Over> {
        match trouble {
            Trouble::Lost(why) => {
                let limit = if self.is_kill() && self.reached() { LIMIT } else { Duration::from_millis(50) };
                if let Some(server) = &self.server {
                    let _ = server.wait_exit(limit);
                }
                Ok(why)
            }
            Trouble::Late(what) => Err(self.find(Kind::Waiting, what)),
            Trouble::Wrong(what) => Err(self.find(Kind::Twice, what)),
        }
    }

    fn ask(&self, request: &serde_json::Value) -> Result<serde_json::Value, String> {
        self.server
            .as_ref()
            .map_or_else(|| Err("there is no server".into()), |server| server.ask(request, LIMIT))
    }

    /// As an operator does who is told that space ran out. Returns whether there was something to resume.
    fn resume_if_paused(&mut self) -> bool {
        let stats = self.ask(&json!({ "command": "stats" }));
        let paused = stats.is_ok_and(|stats| stats["devices"][0]["state"] == "paused");
        paused && self.ask(&json!({ "command": "resume" })).is_ok()
    }

    /// Has the operator ask for something, as often as it takes.
    fn operate(&mut self, request: &serde_json::Value) -> Result<bool, Over> {
        let mut refusals = 0;
        let until = Instant::now() + LIMIT;
        loop {
            let error = match self.ask(request) {
                Ok(_) => return Ok(true),
                Err(error) => error,
            };
            refusals += u32::from(error.starts_with("refused"));
            if refusals > 1 {
                return Ok(false);
            }
            if Instant::now() > until {
                return Err(self.find(Kind::Waiting, format!("{request}: {error}")));
            }
            let ended = self
                .server
                .as_ref()
                .is_some_and(|server| server.wait_exit(Duration::from_millis(20)).is_some());
            if ended {
                self.connect_again()?;
            }
        }
    }

    /// The server was lost while the guest asked for nothing.
    fn connect_again(&mut self) -> Result<(), Over> {
        let cache_off = self.cache_off;
        if !self.connect()? && cache_off {
            self.perform(&[Request::CacheOff])?;
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<bool, Over> {
        self.operate(&json!({ "command": "resize", "bytes": GROWN_BYTES }))
    }

    fn ask_stats(&mut self) -> Result<(), Over> {
        if self.operate(&json!({ "command": "stats" }))? {
            return Ok(());
        }
        Err(self.find(Kind::Waiting, "the operator is refused an answer"))
    }

    /// The guest leaves, and nothing of it is in flight.
    #[expect(clippy::unnecessary_wraps, reason = "a step of the life like the others")]
    fn leave(&mut self) -> Result<(), Over> {
        self.guest.leave();
        Ok(())
    }

    /// SIGTERM. Where the plan's kill comes in between, the next server serves the next guest, and is stopped.
    fn stop(&mut self) -> Result<(), Over> {
        for _ in 0..TRIES {
            let Some(server) = &self.server else { return Ok(()) };
            server.terminate();
            let exit = server.wait_exit(LIMIT);
            let Some(exit) = exit else {
                return Err(self.find(Kind::Waiting, "the server does not stop within the limit"));
            };
            let library = server.seen(|seen| seen.reached && seen.reached_library);
            let reached = server.seen(|seen| seen.reached);
            let silent = self.is_silent(server);
            match exit {
                Exit::Code(0) => {
                    self.clean_stop = Some(self.history.now());
                    return Ok(());
                }
                // It says that not all is well.
                Exit::Code(_) if reached && !self.is_kill() && !silent && exit != PANICKED => {
                    return self.check_log();
                }
                Exit::Signal(Signal::SIGKILL) if reached && self.is_kill() => {}
                _ if library => {}
                exit => return Err(self.find(Kind::Stop, format!("SIGTERM ends the server with {exit:?}"))),
            }
            self.guest.leave();
            self.connect()?;
            self.read_back()?;
        }
        Err(self.find(Kind::Stop, "the server is never stopped in order"))
    }

    fn check_log(&mut self) -> Result<(), Over> {
        let Some(server) = &self.server else { return Ok(()) };
        let library = server.seen(|seen| seen.reached_library);
        let log = server.log();
        match log.lines().find(|line| line.contains("panicked at")) {
            Some(line) if !library => {
                let line = line.to_owned();
                Err(self.find(Kind::Gone, format!("a thread panicked: {line}")))
            }
            _ => Ok(()),
        }
    }

    /// What must hold in the end.
    fn judge(&mut self) {
        if self.findings.iter().all(|finding| finding.kind != Kind::Gone) {
            let _ = self.check_log();
        }
        // The process is to be gone before the image is read.
        if self.generation == 1 {
            self.report = Some(self.first_process());
        }
        self.server = None;
        let image = std::fs::read(self.place.image()).unwrap_or_default();
        for block in self.blocks.keys().copied().collect::<Vec<_>>() {
            let start = block as usize * BLOCK;
            let zeroes = [0; BLOCK];
            let data = image.get(start..start + BLOCK).unwrap_or(&zeroes);
            self.check(block, data, "is in the image");
        }
        debug_assert!(image.len() as u64 >= IMAGE_BYTES || self.blocks.is_empty(), "the image was made");
        let broken = self.history.broken_promises(self.clean_stop, self.case.cache.transfers_unseen());
        for text in broken.into_iter().take(3) {
            self.findings.push(Finding { kind: Kind::Lost, text });
        }
    }
}

fn without_escapes(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text + rest
}

/// A plan as it is given on the command line, for messages.
pub(crate) fn describe(plan: Option<&Plan>) -> String {
    plan.map_or_else(|| "nothing".into(), ToString::to_string)
}
