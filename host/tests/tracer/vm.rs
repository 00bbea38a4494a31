//! A virtual machine with a dirty ring, as small as can be: each vCPU adds one to the first word of each page of its range in
//! turn and then tells the host. So what is written, in which order, is known without asking anybody.

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use dunlin::trace::ebpf::Region;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

/// Guest memory: 64 MiB in one slot.
const PAGES: u64 = 64 << 8;
/// Entries of a ring, more than any pass of a vCPU writes.
const ENTRIES: usize = 1 << 16;
/// The ring is mapped behind the first pages of a vCPU's descriptor (`KVM_DIRTY_LOG_PAGE_OFFSET`, x86).
const RING_PAGE: u64 = 64;
/// `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
/// Of a ring's entry.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// `struct kvm_dirty_gfn`.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: u32,
    offset: u64,
}

/// The machine. Its memory is mapped until the process ends.
pub(crate) struct RingVm {
    _vm: VmFd,
    memory: u64,
    pub(crate) vcpus: Vec<Vcpu>,
}

pub(crate) struct Vcpu {
    fd: VcpuFd,
    vm: RawFd,
    ring: &'static [Entry],
    next: usize,
}

impl RingVm {
    /// One vCPU for each range of pages. The first two pages are the program's.
    pub(crate) fn new(ranges: &[std::ops::Range<u64>]) -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let mut ring = kvm_enable_cap {
            cap: KVM_CAP_DIRTY_LOG_RING,
            ..Default::default()
        };
        ring.args[0] = (ENTRIES * size_of::<Entry>()) as u64;
        vm.enable_cap(&ring).unwrap();
        let memory = map(-1, PAGES * PAGE_SIZE, 0);
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: 0,
            memory_size: PAGES * PAGE_SIZE,
            userspace_addr: memory,
        };
        // SAFETY: the memory is never unmapped.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let vcpus = (0..)
            .zip(ranges)
            .map(|(index, range)| Vcpu::new(&vm, memory, index, range));
        let vcpus = vcpus.collect();
        Self { _vm: vm, memory, vcpus }
    }

    /// Where it is, for a tracer.
    pub(crate) fn region(&self) -> Region {
        Region {
            slot: 0,
            address: self.memory,
            run: Run::new(Gfn(0), Pages(PAGES)),
        }
    }
}

impl Vcpu {
    fn new(vm: &VmFd, memory: u64, index: u64, range: &std::ops::Range<u64>) -> Self {
        let code = program(range);
        let entry = 0x1000 + index * 0x100;
        // SAFETY: the second page of the guest's memory has room for 16 programs, and no vCPU runs yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), (memory + entry) as *mut u8, code.len()) };
        let fd = vm.create_vcpu(index).unwrap();
        let ring = map(
            fd.as_raw_fd(),
            (ENTRIES * size_of::<Entry>()) as u64,
            RING_PAGE * PAGE_SIZE,
        );
        // SAFETY: the mapping has so many entries and stays; of an entry in use, only the flags change.
        let ring = unsafe { std::slice::from_raw_parts(ring as *const Entry, ENTRIES) };
        let flat = |selector, type_| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let mut sregs = fd.get_sregs().unwrap();
        sregs.cr0 |= 1;
        sregs.cs = flat(8, 11);
        let data = flat(16, 3);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        fd.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: entry,
            rflags: 2,
            ..Default::default()
        };
        fd.set_regs(&regs).unwrap();
        Self {
            fd,
            vm: vm.as_raw_fd(),
            ring,
            next: 0,
        }
    }

    /// Goes once through its range, in this thread.
    pub(crate) fn pass(&mut self) {
        match self.fd.run().unwrap() {
            VcpuExit::IoOut(16, _) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The pages in its ring in their order; empties it.
    pub(crate) fn harvest(&mut self) -> Vec<u64> {
        let mut pages = vec![];
        loop {
            let entry = &self.ring[self.next % ENTRIES];
            if entry.flags.load(Ordering::Acquire) & DIRTY == 0 {
                return pages;
            }
            assert_eq!(entry.slot, 0);
            pages.push(entry.offset);
            entry.flags.store(RESET, Ordering::Release);
            self.next += 1;
        }
    }

    /// Gives all harvested entries back to KVM and lets it protect their pages again.
    pub(crate) fn reset(&self) {
        // SAFETY: the call takes no argument; the descriptor is that of the machine to which this belongs.
        let reset = unsafe { libc::ioctl(self.vm, KVM_RESET_DIRTY_RINGS, 0) };
        assert!(reset >= 0, "{}", std::io::Error::last_os_error());
    }
}

/// 32-bit code: `again: mov ebx, START; next: inc dword [ebx]; add ebx, 4096; cmp ebx, END; jb next; out 16, al; jmp again`.
fn program(range: &std::ops::Range<u64>) -> Vec<u8> {
    let address = |page: u64| u32::try_from(page * PAGE_SIZE).unwrap().to_le_bytes();
    let mut code = vec![0xbb];
    code.extend(address(range.start));
    code.extend([0xff, 0x03, 0x81, 0xc3]);
    code.extend(address(1));
    code.extend([0x81, 0xfb]);
    code.extend(address(range.end));
    code.extend([0x72, 0xf0, 0xe6, 0x10, 0xeb, 0xe7]);
    code
}

/// Maps memory, or a part of a descriptor, for good.
fn map(fd: i32, bytes: u64, offset: u64) -> u64 {
    let anonymous = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping at an address that the kernel chooses.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | anonymous,
            fd,
            offset as i64,
        )
    };
    assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    address as u64
}
