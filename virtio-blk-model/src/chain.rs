//! A request's buffers, sorted: header, data, status, however the driver cut them (VIRTIO 1.3, 2.7.4.1).

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use blk_core::virtq::Buffer;
use heapless::Vec;

use crate::wire::RequestHeader;

/// Most data segments in a request.
pub const SEGMENTS_MAX: usize = 128;

const HEADER_BYTES: usize = size_of::<RequestHeader>();

/// The data segments of a request. On the stack, where it is never initialised as a whole: it is 3 KiB.
pub(crate) type Segments = Vec<Segment, SEGMENTS_MAX>;

/// The buffers of one chain. Descriptors and the header are copied once; the data stays where it is.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Readable data, then writable data.
    segments: &'a mut Segments,
    /// How many of them are readable.
    readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    /// The last writable buffer so far: the status byte is the last byte of the very last.
    last: Option<(GuestAddr, u32)>,
    /// More data segments than fit, or a header that is not memory.
    unusable: bool,
}

impl<'a> Chain<'a> {
    /// An empty chain, with empty `segments` to put its data into.
    #[inline]
    pub(crate) const fn new(segments: &'a mut Segments) -> Self {
        Self {
            header: [0; HEADER_BYTES],
            header_len: 0,
            segments,
            readable: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            last: None,
            unusable: false,
        }
    }

    /// Takes the next buffer. Readable ones come before writable ones: the ring has seen to that.
    #[inline(always)]
    pub(crate) fn add<M: GuestMemory + ?Sized>(&mut self, memory: &M, buffer: Buffer) {
        let Buffer { addr, len, writable } = buffer;
        if writable {
            if let Some((addr, len)) = self.last.replace((addr, len)) {
                self.push_writable(addr, len);
            }
        } else {
            self.add_readable(memory, addr, len);
        }
    }

    /// Cuts off the status byte, and returns where it is. `None`: there is nothing writable, and so no way to answer.
    #[inline]
    pub(crate) fn finish(&mut self) -> Option<GuestAddr> {
        let (addr, len) = self.last.take()?;
        let data = len.checked_sub(1)?;
        if data != 0 {
            self.push_writable(addr, data);
        }
        addr.checked_add(u64::from(data))
    }

    /// The header. `None` if it is too short or not memory, or if there are more segments than the device takes.
    #[inline]
    pub(crate) fn header(&self) -> Option<RequestHeader> {
        let whole = self.header_len == HEADER_BYTES && !self.unusable;
        whole.then(|| zerocopy::transmute!(self.header))
    }

    /// The segments behind the header, for the device to read, and their bytes.
    #[inline]
    pub(crate) fn readable(&self) -> (&[Segment], u64) {
        (self.segments.get(..self.readable).unwrap_or_default(), self.readable_bytes)
    }

    /// The segments before the status byte, for the device to write, and their bytes.
    #[inline]
    pub(crate) fn writable(&self) -> (&[Segment], u64) {
        (self.segments.get(self.readable..).unwrap_or_default(), self.writable_bytes)
    }

    #[inline(always)]
    fn add_readable<M: GuestMemory + ?Sized>(&mut self, memory: &M, addr: GuestAddr, len: u32) {
        let (mut addr, mut len) = (addr, len);
        if self.header_len < HEADER_BYTES {
            let take = if self.header_len == 0 && len as usize >= HEADER_BYTES {
                // The usual case, with a length that the compiler knows.
                self.unusable |= memory.read(addr, &mut self.header).is_err();
                HEADER_BYTES as u32
            } else {
                self.add_to_header(memory, addr, len)
            };
            self.header_len = self.header_len.saturating_add(take as usize);
            // The ring has checked that the buffer does not wrap.
            addr = GuestAddr(addr.0.wrapping_add(u64::from(take)));
            len = len.saturating_sub(take);
        }
        if len != 0 {
            self.push(addr, len);
            self.readable = self.segments.len();
            self.readable_bytes = self.readable_bytes.saturating_add(u64::from(len));
        }
    }

    /// Copies as much of a header in pieces as there is, and returns how much that was.
    #[cold]
    fn add_to_header<M: GuestMemory + ?Sized>(&mut self, memory: &M, addr: GuestAddr, len: u32) -> u32 {
        let Some(rest) = self.header.get_mut(self.header_len..) else { return 0 };
        let take = u32::try_from(rest.len()).unwrap_or(0).min(len);
        let Some(into) = rest.get_mut(..take as usize) else { return 0 };
        self.unusable |= memory.read(addr, into).is_err();
        take
    }

    #[inline]
    fn push_writable(&mut self, addr: GuestAddr, len: u32) {
        self.push(addr, len);
        self.writable_bytes = self.writable_bytes.saturating_add(u64::from(len));
    }

    #[inline]
    fn push(&mut self, addr: GuestAddr, len: u32) {
        self.unusable |= self.segments.push(Segment::Guest { addr, len }).is_err();
    }
}

/// Copies `into.len()` bytes of guest segments. `None` if they are fewer, or not memory.
pub(crate) fn copy_out<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    into: &mut [u8],
) -> Option<()> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = into.get_mut(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.read(addr, rest.get_mut(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    (at == into.len()).then_some(())
}

/// Copies `bytes` into guest segments, as many as fit, and returns how many that were. `None` if they are not memory.
pub(crate) fn copy_in<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    bytes: &[u8],
) -> Option<u32> {
    let mut at: usize = 0;
    for segment in segments {
        let Segment::Guest { addr, len } = *segment else { return None };
        let rest = bytes.get(at..)?;
        let take = rest.len().min(usize::try_from(len).ok()?);
        memory.write(addr, rest.get(..take)?).ok()?;
        at = at.checked_add(take)?;
    }
    u32::try_from(at).ok()
}
