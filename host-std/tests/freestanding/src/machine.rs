//! A machine of which the optimiser knows nothing: any access, any byte of memory, any answer of the storage may come. What a
//! program with it links is what a front needs.

use core::hint::black_box;
use core::ops::Range;

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::{Op, Segment};
use blk_core::ram::plain_info;
use blk_core::storage::{Busy, Cache, Completion, Info, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use scsi_model::{DataError, Direction, SegmentList, Transport};

/// Guest memory that holds anything.
pub struct AnyMemory;

impl GuestMemory for AnyMemory {
    #[inline(never)]
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        black_box((addr, into));
        any(Err(MemoryError))
    }

    #[inline(never)]
    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        black_box((addr, from));
        any(Err(MemoryError))
    }

    #[inline(never)]
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        black_box(addr);
        any(Err(MemoryError))
    }

    #[inline(never)]
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        black_box((addr, value));
        any(Err(MemoryError))
    }

    #[inline(never)]
    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        black_box((addr, len));
        any(false)
    }
}

/// A storage that answers anything. The models check no storage: what they are given is theirs to believe, but not to
/// panic at.
pub struct AnyStorage {
    info: Info,
    staging: [u8; 4096],
}

impl AnyStorage {
    pub const fn new() -> Self {
        Self { info: plain_info(1 << 20, Cache::WriteBack), staging: [0; 4096] }
    }
}

impl<M: ?Sized> Storage<M> for AnyStorage {
    #[inline(never)]
    fn info(&self) -> &Info {
        black_box(&self.info)
    }

    #[inline(never)]
    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        black_box((memory, tag, op, segments));
        any(Err(Busy))
    }

    #[inline(never)]
    fn poll(&mut self, memory: &M) -> Option<Completion> {
        black_box(memory);
        any(None)
    }

    #[inline(never)]
    fn staging(&mut self, slot: u16) -> &mut [u8] {
        black_box(slot);
        let bytes = any(0);
        black_box(self.staging.get_mut(..bytes).unwrap_or_default())
    }

    #[inline(never)]
    fn cancel_in_flight(&mut self) -> bool {
        any(false)
    }
}

/// A transport whose tasks have anything.
pub struct AnyTransport;

impl Transport for AnyTransport {
    #[inline(never)]
    fn segments(
        &mut self,
        tag: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        black_box((tag, direction, range));
        while any(false) && list.push(any(Segment::Staging { offset: 0, len: 0 })).is_ok() {}
        any(Err(DataError))
    }
}

/// Any value of `example`'s type.
pub fn any<T>(example: T) -> T {
    black_box(example)
}

/// Reads any register.
pub fn read<D: Device<AnyMemory, [AnyStorage]>>(device: &mut D, storage: &mut [AnyStorage]) {
    let (region, offset, width) = any((Region::Config, 0, Width::Byte));
    black_box(device.read(region, offset, width, &AnyMemory, storage));
}

/// Writes anything to any register.
pub fn write<D: Device<AnyMemory, [AnyStorage]>>(device: &mut D, storage: &mut [AnyStorage]) {
    let (region, offset, width, value) = any((Region::Config, 0, Width::Byte, 0));
    black_box(device.write(region, offset, width, value, &AnyMemory, storage));
}

/// Lets the device work.
pub fn poll<D: Device<AnyMemory, [AnyStorage]>>(device: &mut D, storage: &mut [AnyStorage]) {
    black_box(device.poll(&AnyMemory, storage));
}

/// Pulls the machine's reset line.
pub fn reset<D: Device<AnyMemory, [AnyStorage]>>(device: &mut D, storage: &mut [AnyStorage]) {
    black_box(device.reset(&AnyMemory, storage));
}

/// A program that does with `$front` what a machine does with it. The front is in a static, made when the program is compiled, and
/// `init` brings it up. Each call is a function of its own, whose stack can be measured.
#[macro_export]
macro_rules! program {
    ($front:ty, $made:expr $(,)?) => {
        $crate::program!($front, $made, init: |_, _| {});
    };
    ($front:ty, $made:expr, init: $init:expr $(,)?) => {
        $crate::program!(
            $front,
            $made,
            init: $init,
            read: $crate::machine::read,
            write: $crate::machine::write,
            poll: $crate::machine::poll,
            reset: $crate::machine::reset,
        );
    };
    (
        $front:ty,
        $made:expr,
        init: $init:expr,
        read: $read:expr,
        write: $write:expr,
        poll: $poll:expr,
        reset: $reset:expr $(,)?
    ) => {
        static FRONT: ::spin::Mutex<$front> = ::spin::Mutex::new($made);
        static STORAGE: ::spin::Mutex<[$crate::machine::AnyStorage; 1]> =
            ::spin::Mutex::new([$crate::machine::AnyStorage::new()]);

        #[used]
        #[unsafe(no_mangle)]
        static STATE_BYTES: u64 = size_of::<$front>() as u64;

        $crate::program!(@call $front, machine_init, $init);
        $crate::program!(@call $front, machine_read, $read);
        $crate::program!(@call $front, machine_write, $write);
        $crate::program!(@call $front, machine_poll, $poll);
        $crate::program!(@call $front, machine_reset, $reset);

        fn run() -> u8 {
            ::core::hint::black_box(&STATE_BYTES);
            machine_init();
            loop {
                match $crate::machine::any(0_u8) {
                    0 => machine_read(),
                    1 => machine_write(),
                    2 => machine_poll(),
                    3 => machine_reset(),
                    _ => return 0,
                }
            }
        }

        $crate::entry!(run);
    };
    (@call $front:ty, $name:ident, $call:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name() {
            let call: fn(&mut $front, &mut [$crate::machine::AnyStorage]) = $call;
            call(&mut *FRONT.lock(), &mut *STORAGE.lock());
        }
    };
}
