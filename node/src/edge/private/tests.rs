use super::*;

const A: PublisherKey = PublisherKey([1; 32]);
const B: PublisherKey = PublisherKey([2; 32]);

fn name(stream: &str) -> StreamName {
    stream.parse().unwrap()
}

fn credential(text: &str) -> Arc<Credential> {
    Arc::new(Credential::token(text))
}

/// Everything a server is to be told.
fn told(streams: &mut Streams, server: PublisherKey) -> Vec<PrivateChange> {
    std::iter::from_fn(|| streams.next_change(server)).collect()
}

fn add(stream: &str, text: &str, push: bool) -> PrivateChange {
    PrivateChange::Add { credential: Credential::token(text), streams: vec![name(stream)], push }
}

#[test]
fn every_server_is_told_of_every_stream_and_one_pushes() {
    let mut streams = Streams::default();
    let (answer, mut joined) = oneshot::channel();
    streams.want(&name("orders.a"), credential("t"), Some(answer));
    assert!(!streams.is_untold(), "there is nobody to tell");
    streams.opened(A);
    assert_eq!(told(&mut streams, A), [add("orders.a", "t", true)]);
    streams.opened(B);
    assert_eq!(told(&mut streams, B), [add("orders.a", "t", false)]);
    // Where it stands is told by the one that pushes: only of that it is known that everything after will come.
    streams.heads(B, &[(name("orders.a"), None)]);
    assert!(joined.try_recv().is_err());
    streams.heads(A, &[(name("orders.a"), None)]);
    assert_eq!(joined.try_recv(), Ok(Ok(None)));
    // The other one pushes when the first is gone.
    streams.closed(A);
    assert_eq!(told(&mut streams, B), [PrivateChange::Push { streams: vec![name("orders.a")], push: true }]);
    streams.opened(A);
    assert_eq!(told(&mut streams, A), [add("orders.a", "t", false)], "who comes back does not take it away");
    // Something newer is shown to both.
    streams.want(&name("orders.a"), credential("u"), None);
    assert_eq!(told(&mut streams, A), [add("orders.a", "u", false)]);
    assert_eq!(told(&mut streams, B), [add("orders.a", "u", true)]);
    streams.leave(&name("orders.a"));
    let remove = [PrivateChange::Remove { streams: vec![name("orders.a")] }];
    assert_eq!(told(&mut streams, A), remove);
    assert_eq!(told(&mut streams, B), remove);
    assert!(streams.by_name.is_empty());
}

#[test]
fn who_waits_hears_of_a_denial() {
    let mut streams = Streams::default();
    streams.opened(A);
    streams.opened(B);
    let (answer, mut joined) = oneshot::channel();
    streams.want(&name("orders.a"), credential("t"), Some(answer));
    for server in [A, B] {
        told(&mut streams, server);
    }
    streams.denied(A, &[name("orders.a")], Denial::Expired);
    assert_eq!(joined.try_recv(), Ok(Err(Denial::Expired)));
    // Asked for again, with the same or with something newer.
    let (answer, mut joined) = oneshot::channel();
    streams.want(&name("orders.a"), credential("t"), Some(answer));
    assert_eq!(told(&mut streams, A).len() + told(&mut streams, B).len(), 2);
    let pusher = streams.by_name[&name("orders.a")].pusher.unwrap();
    streams.heads(pusher, &[(name("orders.a"), None)]);
    assert_eq!(joined.try_recv(), Ok(Ok(None)));
}

#[test]
fn a_stream_that_comes_and_goes_before_anybody_is_told_leaves_nothing() {
    let mut streams = Streams::default();
    streams.want(&name("orders.a"), credential("t"), None);
    streams.leave(&name("orders.a"));
    assert!(streams.by_name.is_empty());
    streams.opened(A);
    assert_eq!(told(&mut streams, A), []);
    streams.want(&name("orders.a"), credential("t"), None);
    streams.leave(&name("orders.a"));
    assert_eq!(told(&mut streams, A), []);
    // Left and wanted again: one word is enough.
    streams.want(&name("orders.a"), credential("t"), None);
    told(&mut streams, A);
    streams.leave(&name("orders.a"));
    streams.want(&name("orders.a"), credential("t"), None);
    assert_eq!(told(&mut streams, A), [add("orders.a", "t", true)]);
}
