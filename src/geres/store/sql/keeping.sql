-- name: blobs_named
SELECT blob FROM
       (SELECT stdout_blob AS blob FROM attempt WHERE stdout_blob > :after
        UNION SELECT stderr_blob FROM attempt WHERE stderr_blob > :after) AS named
 ORDER BY blob LIMIT :limit
