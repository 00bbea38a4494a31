//! `dunlin-agent`: runs in a Linux guest and tells whoever moves it which of its memory need not move.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("dunlin-agent runs in Linux guests only");
    std::process::ExitCode::from(2)
}
