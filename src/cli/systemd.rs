//! Reports readiness to a service manager, as systemd's `Type=notify` expects.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The variable with the address of the service manager's socket.
pub(super) const SOCKET_ENV: &str = "NOTIFY_SOCKET";

/// Reports to the service manager that the server is ready. Without a service manager that waits for it, does nothing.
///
/// # Errors
/// If the service manager has named a socket that does not take the message.
pub(super) fn report_ready() -> io::Result<()> {
    match std::env::var(SOCKET_ENV) {
        Ok(address) if !address.is_empty() => send(&address, b"READY=1"),
        _ => Ok(()),
    }
}

/// Sends a message to the socket at `address`: a path or, on Linux, `@` and a name without a path.
fn send(address: &str, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    match address.strip_prefix('@') {
        None => socket.send_to(message, Path::new(address))?,
        Some(name) => send_abstract(&socket, name, message)?,
    };
    Ok(())
}

#[cfg(target_os = "linux")]
fn send_abstract(socket: &UnixDatagram, name: &str, message: &[u8]) -> io::Result<usize> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    socket.send_to_addr(message, &SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn send_abstract(_: &UnixDatagram, _: &str, _: &[u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_a_socket_with_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), b"READY=1").unwrap();
        let mut message = [0; 16];
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_message_reaches_a_socket_without_a_path() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;

        let name = format!("ghostserve-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(&format!("@{name}"), b"READY=1").unwrap();
        let mut message = [0; 16];
        assert_eq!(manager.recv(&mut message).unwrap(), 7);
    }
}
