//! What the sequencer asks of a storage so that each kind of request keeps its promise.
//!
//! `cargo run -p blk-core --example promise`

use blk_core::memory::CellMemory;
use blk_core::op::{Op, Segment};
use blk_core::order::{GuestCache, Order, Request, Sequencer, Started};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Busy, Cache, Completion, Info, Storage, Submission};
use blk_core::units::{Extent, GuestAddr, Tag};

/// A storage that prints what it is asked, and leaves the work to another.
struct Printed<S>(S);

impl<M: ?Sized, S: Storage<M>> Storage<M> for Printed<S> {
    fn info(&self) -> &Info {
        self.0.info()
    }

    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        println!("    {op:?}");
        self.0.submit(memory, tag, op, segments)
    }

    fn poll(&mut self, memory: &M) -> Option<Completion> {
        self.0.poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.0.staging(slot)
    }
}

fn main() {
    let (mut ram, mut image) = (vec![0; 4096], vec![0; 1 << 20]);
    let memory = CellMemory::new(GuestAddr(0), &mut ram);
    // Without native FUA, and with a cache that forgets: the sequencer has to flush.
    let mut disk = Printed(RamDisk::<4>::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut []));
    let mut sequencer = Sequencer::<&str, 4>::new();
    let data = [Segment::Guest { addr: GuestAddr(0), len: 512 }];
    let write = Request::new(Op::Write { extent: Extent::new(7, 1), fua: false });

    for (name, request, cache) in [
        ("write", write, GuestCache::WriteBack),
        ("write with FUA", write.with_fua(true), GuestCache::WriteBack),
        ("write by a guest that was told of no cache", write, GuestCache::WriteThrough),
        ("write as a barrier", write.ordered(Order::Barrier), GuestCache::WriteBack),
        ("flush", Request::new(Op::Flush), GuestCache::WriteBack),
    ] {
        println!("{name}");
        let segments = if request.op == Op::Flush { &[][..] } else { &data };
        // Refused requests stay with their owner; here nothing else is in flight, so none is.
        // The disk does each operation at once, and so the whole plan is done here.
        let started = sequencer.submit(&memory, &mut disk, &request, cache, segments, name);
        if let Some(done) = started.ok().and_then(Started::done) {
            println!("    done: {:?}", done.result);
            sequencer.release(done.slot);
        }
    }
}
