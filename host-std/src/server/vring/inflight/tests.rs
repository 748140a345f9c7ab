//! A server that is killed at any moment, and the one that comes after it: every chain is returned exactly once.

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use blk_core::virtq::{InflightTracker, Queue, RingFeatures, RingSetup};

use super::super::inflight_recorder::InflightRecorder;
use super::super::persistent_state::PersistentState;
use super::*;
use crate::memory::MappedMemory;
use crate::server::images::Images;
use crate::server::stats::QueueCounters;

const SIZE: u16 = 4;
const MEMORY_BYTES: usize = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// What a kill leaves: the bytes of the region, and of guest memory.
type Remains = (Vec<u8>, Vec<u8>);

/// A log that is killed before and after each of its calls.
struct Watched {
    log: InflightRecorder,
    region: Region,
    memory: MappedMemory,
    remains: Vec<Remains>,
}

impl Watched {
    fn kill(&mut self) {
        let region =
            (0..self.region.bytes).map(|at| self.region.at::<AtomicU8>(at).load(Ordering::Relaxed)).collect();
        let mut memory = vec![0; MEMORY_BYTES];
        self.memory.read(GuestAddr(0), &mut memory).unwrap();
        self.remains.push((region, memory));
    }
}

impl InflightTracker for Watched {
    fn next_unfinished(&self) -> Option<u16> {
        self.log.next_unfinished()
    }

    fn resubmitted(&mut self) {
        self.kill();
        self.log.resubmitted();
    }

    fn record_taken(&mut self, head: u16) {
        self.kill();
        self.log.record_taken(head);
        self.kill();
    }

    fn record_used(&mut self, head: u16) {
        self.kill();
        self.log.record_used(head);
        self.kill();
    }

    fn publishing(&mut self) {
        self.kill();
        self.log.publishing();
    }

    fn published(&mut self, used: u16) {
        self.kill();
        self.log.published(used);
        self.kill();
    }
}

fn setup() -> RingSetup {
    let (descriptors, driver, device) = (GuestAddr(0x1000), GuestAddr(AVAILABLE), GuestAddr(USED));
    RingSetup { size: SIZE, descriptors, driver, device }
}

/// A server on a region and a ring, as they were left.
fn server(remains: &Remains) -> Result<(Queue, Watched), String> {
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), MEMORY_BYTES)]).unwrap();
    memory.write(GuestAddr(0), &remains.1).unwrap();
    let (region, _, _) = Region::create(1, SIZE, 1).unwrap();
    for (at, byte) in remains.0.iter().enumerate() {
        region.at::<AtomicU8>(at).store(*byte, Ordering::Relaxed);
    }
    let used = memory.load_u16_acquire(GuestAddr(USED + 2)).unwrap();
    let part = region.queue(0).unwrap();
    let recovered = part.recover(SIZE, used)?;
    let mut queue = Queue::new(SIZE);
    *queue.setup_mut().unwrap() = setup();
    queue.enable_at(RingFeatures::default(), recovered.position(used)).unwrap();
    let persistent = Arc::new(PersistentState::open(region.clone(), Images::new(Vec::new())));
    let log = InflightRecorder::new(part, persistent, recovered, Arc::new(QueueCounters::default()));
    Ok((queue, Watched { log, region, memory, remains: Vec::new() }))
}

/// Takes what there is, up to `most` chains, and returns their heads.
fn take(queue: &mut Queue, log: &mut Watched, most: usize) -> Result<Vec<u16>, String> {
    let mut taken = Vec::new();
    while taken.len() < most {
        let memory = log.memory.clone();
        let Some(head) = queue.peek(&memory, log).map_err(|error| format!("{error:?}"))? else { break };
        queue.pop(log, head);
        taken.push(head);
    }
    Ok(taken)
}

fn give_back(queue: &mut Queue, log: &mut Watched, heads: &[u16]) {
    let memory = log.memory.clone();
    for &head in heads {
        queue.add_used(&memory, log, head, 1).unwrap();
    }
    queue.publish(&memory, log).unwrap();
}

/// Lets a server finish, and looks whether the driver has each of its three chains once.
fn finish(remains: &Remains) -> Result<Vec<Remains>, String> {
    let (mut queue, mut log) = server(remains)?;
    let mut heads = take(&mut queue, &mut log, usize::MAX)?;
    heads.reverse();
    give_back(&mut queue, &mut log, &heads);
    let used = log.memory.load_u16_acquire(GuestAddr(USED + 2)).unwrap();
    let mut returned: Vec<_> = (0..u64::from(used.min(SIZE)))
        .map(|entry| log.memory.load_u16_acquire(GuestAddr(USED + 4 + 8 * entry)).unwrap())
        .collect();
    returned.sort_unstable();
    if used != 3 || returned != [0, 1, 2] {
        return Err(format!("used index {used}, returned {returned:?}"));
    }
    Ok(log.remains)
}

/// Kills a server at every step of three chains, two of which come back in one batch and out of order, and the server
/// after it at every step too.
fn kills() -> Result<usize, String> {
    let (region, _, _) = Region::create(1, SIZE, 1).unwrap();
    let fresh = (0..region.bytes).map(|at| region.at::<AtomicU8>(at).load(Ordering::Relaxed)).collect();
    let mut memory = vec![0; MEMORY_BYTES];
    let available = AVAILABLE as usize;
    memory[available + 2] = 3;
    memory[available + 4..available + 10].copy_from_slice(&[0, 0, 1, 0, 2, 0]);
    let (mut queue, mut log) = server(&(fresh, memory))?;
    assert_eq!(take(&mut queue, &mut log, 3)?, [0, 1, 2]);
    give_back(&mut queue, &mut log, &[1]);
    give_back(&mut queue, &mut log, &[2, 0]);
    let mut count = 0;
    for remains in &log.remains {
        for again in finish(remains)? {
            finish(&again)?;
            count += 1;
        }
        count += 1;
    }
    Ok(count)
}

#[test]
fn every_chain_is_returned_once_wherever_two_servers_are_killed() {
    assert!(kills().unwrap() > 100);
}

#[cfg(feature = "mutants")]
#[test]
fn a_log_that_forgets_is_found() {
    use crate::server::mutant::{Mutant, set};
    for mutant in [Mutant::TakenNotRecorded, Mutant::BatchNotRecognised] {
        set(Some(mutant));
        let found = kills();
        set(None);
        assert!(found.is_err(), "{mutant:?}");
    }
}

#[test]
fn a_region_that_is_cut_short_or_makes_no_sense_is_refused() {
    let (region, layout, file) = Region::create(2, SIZE, 1).unwrap();
    assert!(
        Region::open(file.try_clone().unwrap(), &InflightLayout { queues: 3, ..layout }, &Arc::default())
            .is_err()
    );
    // Beyond the end of the file, where a page would kill whoever touches it.
    assert!(
        Region::open(file.try_clone().unwrap(), &InflightLayout { offset: 8, ..layout }, &Arc::default())
            .is_err()
    );
    assert!(
        Region::open(file.try_clone().unwrap(), &InflightLayout { offset: 4, ..layout }, &Arc::default())
            .is_err()
    );
    assert!(
        Region::open(
            file.try_clone().unwrap(),
            &InflightLayout { offset: u64::MAX, ..layout },
            &Arc::default()
        )
        .is_err()
    );
    assert!(Region::open(file, &layout, &Arc::default()).is_ok());
    let part = region.queue(1).unwrap();
    part.taken(3, 7);
    assert_eq!(part.recover(SIZE, 0).unwrap(), Recovered { unfinished: vec![3], counter: 8 });
    // The used index is ahead by more than the ring holds: this is another ring.
    assert!(part.recover(SIZE, 100).is_err());
    // The last batch leads out of the table.
    part.u16(LAST_BATCH_HEAD).store(9, Ordering::Relaxed);
    assert!(part.recover(SIZE, 1).is_err());
    assert!(part.recover(8, 0).is_err());
    assert!(region.queue(2).is_none());
}
