//! Networks of namespaces: other programs, and the machines of docker-compose.yml.
