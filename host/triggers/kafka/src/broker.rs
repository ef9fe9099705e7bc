use std::sync::mpsc;
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

/// librdkafka's mock cluster, so that a laptop needs no broker. It keeps nothing on disk and drops what is older than 5 MiB or
/// 100,000 records a partition.
///
/// The cluster's handle may not change threads, so one thread owns it.
pub struct EmbeddedBroker {
    bootstrap: String,
    commands: mpsc::Sender<CreateTopic>,
    thread: Option<JoinHandle<()>>,
}

/// The embedded broker could not do something.
#[derive(Clone, Debug, thiserror::Error)]
#[error("embedded broker: {0}")]
pub struct BrokerError(String);

struct CreateTopic {
    name: String,
    partitions: i32,
    reply: mpsc::Sender<Result<(), BrokerError>>,
}

impl EmbeddedBroker {
    /// Starts the broker on a free port of the loopback interface.
    ///
    /// # Errors
    /// librdkafka could not open its sockets.
    pub fn start() -> Result<Self, BrokerError> {
        let (ready, started) = mpsc::channel();
        let (commands, requests) = mpsc::channel::<CreateTopic>();
        let thread = std::thread::Builder::new()
            .name("embedded-broker".into())
            .spawn(move || match MockCluster::new(1) {
                Err(error) => {
                    let _ = ready.send(Err(BrokerError(error.to_string())));
                }
                Ok(cluster) => {
                    let _ = ready.send(Ok(cluster.bootstrap_servers()));
                    for request in requests {
                        let made = cluster
                            .create_topic(&request.name, request.partitions, 1)
                            .map_err(|error| {
                                BrokerError(format!("topic '{}': {error}", request.name))
                            });
                        let _ = request.reply.send(made);
                    }
                }
            })
            .map_err(|error| BrokerError(error.to_string()))?;
        let bootstrap = started
            .recv()
            .map_err(|_| BrokerError("its thread ended".into()))??;
        Ok(Self {
            bootstrap,
            commands,
            thread: Some(thread),
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Makes a topic; one that is there stays as it is.
    ///
    /// # Errors
    /// The name is not acceptable to librdkafka.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        let gone = || BrokerError("its thread ended".into());
        let (reply, answer) = mpsc::channel();
        let request = CreateTopic {
            name: name.to_owned(),
            partitions,
            reply,
        };
        self.commands.send(request).map_err(|_| gone())?;
        match answer.recv().map_err(|_| gone())? {
            Err(error)
                if error.0.contains("TopicAlreadyExists") || error.0.contains("already exists") =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        // The thread ends when the last sender is gone, and takes the cluster with it.
        let (closed, _) = mpsc::channel();
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
