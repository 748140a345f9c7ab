//! `kill -9` of a server of virtio-scsi, over and over: what was acknowledged is there, a command that cannot be done twice is
//! done once, and what the guest has set in the unit holds. The guest is `host_std::testing::client`, which reconnects as QEMU does and
//! finds out what comes back twice or never.

mod serving;

use std::collections::HashMap;
use std::time::Duration;

use fastrand::Rng;
use host_std::testing::client::{Command, Options, Scsi, ScsiDone, ScsiPayload, Ticket, cdb};
use scsi_model::front::virtio_scsi::Address;
use serving::{Disk, Server, Shadow};

const BLOCK: usize = 512;
const UNIT: Address = Address { target: 0, lun: 0 };
const MISCOMPARE: u8 = 0xe;

fn rounds() -> usize {
    std::env::var("KILL_ROUNDS").map_or(20, |rounds| rounds.parse().expect("a number of rounds"))
}

fn random() -> Rng {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    Rng::with_seed(seed)
}

fn connect(server: &Server) -> Scsi {
    let bytes = 8 * BLOCK as u32;
    let options = Options { queues: 3, transfer_bytes: bytes, segment_bytes: bytes, ..Options::default() };
    let mut host = Scsi::connect(server.socket(), options).unwrap();
    host.ready(UNIT).unwrap();
    host
}

/// Kicks, waits a little, kills, and returns what had come back by then.
fn kill(host: &mut Scsi, server: &mut Server, random: &mut Rng) -> Vec<ScsiDone> {
    host.session_mut().kick(Scsi::QUEUE).unwrap();
    std::thread::sleep(Duration::from_micros(random.u64(..4000)));
    server.kill();
    std::iter::from_fn(|| host.poll(Scsi::QUEUE).unwrap()).collect()
}

/// A block that only read-modify-write commands change, one at a time.
struct Cell {
    holds: [u8; BLOCK],
    by_or: bool,
}

/// What is under way to a cell.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// COMPARE AND WRITE of what it holds: it holds the other bytes then.
    Exchange([u8; BLOCK]),
    /// COMPARE AND WRITE of something else, which must leave it as it is.
    Fail,
    Or([u8; BLOCK]),
}

impl Cell {
    fn step(&self, random: &mut Rng) -> Step {
        if self.by_or {
            let mut mask = [0; BLOCK];
            mask[random.usize(..BLOCK)] = 1 << random.u32(..8);
            return Step::Or(mask);
        }
        let mut next = [0; BLOCK];
        random.fill(&mut next);
        if random.u8(..4) == 0 { Step::Fail } else { Step::Exchange(next) }
    }

    fn submit(&self, host: &mut Scsi, lba: u64, step: &Step) -> Ticket {
        let (block, data) = match step {
            Step::Or(mask) => (cdb::or_write_16(lba, 1, false), mask.to_vec()),
            Step::Exchange(next) => (cdb::compare_and_write(lba, 1, false), [self.holds, *next].concat()),
            Step::Fail => {
                let other = self.holds.map(|byte| !byte);
                (cdb::compare_and_write(lba, 1, false), [other, [0; BLOCK]].concat())
            }
        };
        host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::Out(&data))).unwrap()
    }

    /// Takes the end of a step over.
    fn ended(&mut self, step: Step, done: &ScsiDone) -> Result<(), String> {
        let miscompared = done.sense.is_some_and(|sense| sense.key == MISCOMPARE);
        match step {
            Step::Fail if miscompared => {}
            Step::Exchange(next) if done.is_good() => self.holds = next,
            Step::Or(mask) if done.is_good() => {
                self.holds.iter_mut().zip(mask).for_each(|(at, bit)| *at |= bit)
            }
            step => return Err(format!("{done:?} ended {step:?}")),
        }
        Ok(())
    }
}

/// Read-modify-write commands while the server is killed. A completion that is held back makes room for the kill between a
/// write and its answer. Returns how many commands a successor went on with, or what went wrong.
fn each_is_done_once(rounds: usize, mutant: Option<&str>) -> Result<u64, String> {
    let mut random = random();
    let disk = Disk::new(1 << 20);
    let faults = format!("any@40%:2ms;seed={}", random.u64(..1 << 40));
    let serve = || disk.serve_as("virtio-scsi", "", &["--fault", &faults], mutant);
    let mut server = serve();
    let mut host = connect(&server);
    let mut cells: Vec<_> = (0..32).map(|at| Cell { holds: [0; BLOCK], by_or: at % 4 == 3 }).collect();
    let mut resubmitted = 0;
    for round in 0..rounds {
        let mut under_way = HashMap::new();
        for (lba, cell) in cells.iter().enumerate() {
            let step = cell.step(&mut random);
            under_way.insert(cell.submit(&mut host, lba as u64, &step), (lba, step));
        }
        let mut done = kill(&mut host, &mut server, &mut random);
        server = serve();
        host.session_mut().reconnect().unwrap();
        while done.len() < under_way.len() {
            done.push(host.wait(Scsi::QUEUE).map_err(|error| format!("round {round}: {error}"))?);
        }
        for done in &done {
            let (lba, step) = under_way[&done.ticket];
            cells[lba].ended(step, done).map_err(|why| format!("round {round}, block {lba}: {why}"))?;
        }
        for (lba, cell) in cells.iter().enumerate() {
            let mut back = [0; BLOCK];
            host.read(UNIT, lba as u64, BLOCK as u32, &mut back).map_err(|error| error.to_string())?;
            if back != cell.holds {
                return Err(format!("round {round}: block {lba} holds something else"));
            }
        }
        resubmitted += disk.stats()["server"]["resubmitted"].as_u64().unwrap();
    }
    Ok(resubmitted)
}

#[test]
fn what_cannot_be_done_twice_is_done_once_across_kills() {
    let resubmitted = each_is_done_once(rounds(), None).unwrap();
    assert!(resubmitted > 0, "no kill found a command under way");
}

#[cfg(feature = "mutants")]
#[test]
fn a_compare_and_write_whose_stage_is_not_recorded_is_found() {
    let found = each_is_done_once(rounds(), Some("StageNotRecorded")).unwrap_err();
    assert!(found.contains("Exchange"), "{found}");
}

/// Reads, writes with and without FUA and SYNCHRONIZE CACHE, 64 deep.
#[test]
fn a_server_that_is_killed_under_load_loses_nothing() {
    const BYTES: usize = 1 << 20;
    let mut random = random();
    let disk = Disk::new(BYTES as u64);
    let serve = || disk.serve_as("virtio-scsi", "", &[], None);
    let mut server = serve();
    let mut host = connect(&server);
    let mut shadow = Shadow::new(BYTES, BLOCK);
    for round in 0..rounds() {
        let mut under_way: HashMap<Ticket, Option<usize>> = HashMap::new();
        let ended = |done: ScsiDone, under_way: &mut HashMap<_, _>, shadow: &mut Shadow| {
            assert!(done.is_good(), "round {round}: {done:?}");
            if let Some(block) = under_way.remove(&done.ticket).expect("a command comes back once") {
                shadow.acknowledge(block);
            }
        };
        for _ in 0..random.usize(1..800) {
            // One writer for a block at a time: the order of two would be anybody's guess.
            let block = random.usize(..BYTES / BLOCK);
            let busy = under_way.values().any(|&other| other == Some(block));
            let (writes, lba) = (!busy && random.u8(..4) != 0, block as u64);
            let ticket = if writes {
                let data = shadow.next(block);
                let block = cdb::write_16(lba, 1, random.u8(..8) == 0);
                host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::Out(&data)))
            } else if random.u8(..8) == 0 {
                let block = cdb::synchronize_cache_16();
                host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::None))
            } else {
                let block = cdb::read_16(lba, 1, false);
                host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::In(BLOCK as u32)))
            };
            under_way.insert(ticket.unwrap(), writes.then_some(block));
            if under_way.len() >= 64 {
                ended(host.wait(Scsi::QUEUE).unwrap(), &mut under_way, &mut shadow);
            }
        }
        for done in kill(&mut host, &mut server, &mut random) {
            ended(done, &mut under_way, &mut shadow);
        }
        server = serve();
        host.session_mut().reconnect().unwrap();
        while !under_way.is_empty() {
            let done = host.wait(Scsi::QUEUE).unwrap_or_else(|error| panic!("round {round}: {error}"));
            ended(done, &mut under_way, &mut shadow);
        }
        shadow.verify_by(|sector, back| host.read(UNIT, sector, BLOCK as u32, back).unwrap());
    }
    assert!(server.runs());
}

/// Killed as soon as the guest can see the answer to MODE SELECT, be it told or not. Returns whether each write after "off" was made stable.
fn the_cache_setting_holds(rounds: usize, mutant: Option<&str>) -> bool {
    let disk = Disk::new(1 << 20);
    let serve = || disk.serve_as("virtio-scsi", "", &[], mutant);
    let mut server = serve();
    let mut host = connect(&server);
    (0..rounds).all(|round| {
        host.set_write_cache(UNIT, true).unwrap();
        let off = cdb::caching_page(false);
        let select = Command::new(UNIT, &cdb::MODE_SELECT_6, ScsiPayload::Out(&off));
        host.submit(Scsi::QUEUE, &select).unwrap();
        host.session_mut().kick(Scsi::QUEUE).unwrap();
        let done = std::iter::from_fn(|| Some(host.poll(Scsi::QUEUE).unwrap())).flatten().next();
        server.kill();
        assert!(done.unwrap().is_good());
        server = serve();
        host.session_mut().reconnect().unwrap();
        let block = cdb::write_16(round as u64, 1, false);
        host.perform(&Command::new(UNIT, &block, ScsiPayload::Out(&[1; BLOCK]))).unwrap();
        let done = &disk.stats()["images"][0]["host"];
        done["fdatasync_calls"] != 0 || done["fua_writes"] != 0
    })
}

#[test]
fn a_cache_that_the_guest_has_turned_off_stays_off_across_kills() {
    assert!(the_cache_setting_holds(rounds(), None));
}

#[cfg(feature = "mutants")]
#[test]
fn a_setting_that_is_kept_after_its_answer_is_found() {
    assert!(!the_cache_setting_holds(3, Some("SettingKeptLate")));
}
